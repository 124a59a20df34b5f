"""When to say `Unknown`: too far from everything, or too unsure.

Shapes: N cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scgpt_ray.mapping.error_bound import error_bound
from scgpt_ray.mapping.label_table import Codes
from scgpt_ray.mapping.votes import Floats

NO_NEIGHBOR_VOTED = "no neighbour"
"""Reason of a cell none of whose neighbours has a label."""
TOO_FAR = "distance"
"""Reason of a cell that is farther from its neighbours than cells of their label are."""
TOO_UNSURE = "confidence"
"""Reason of a cell whose label is less probable than required."""


@dataclass(frozen=True)
class Thresholds:
    """What a vote must reach for its top label to be accepted."""

    probability: float
    """Least calibrated probability; 0 rejects no cell."""
    nearness: dict[str, float]
    """Least mean score of the voters, by top label; for labels with enough calibration cells."""
    nearness_of_others: float | None
    """The same for all other labels, over all calibration cells; None rejects no cell."""

    def reasons(self, names: Sequence[str], top_N: Codes, nearness_N: Floats, probability_N: Floats) -> list[str]:
        """Why each cell is unknown.

        Args:
            names: Labels.
            top_N: int32 [N], place of the top label in names; -1 where no neighbour voted.
            nearness_N: float64 [N], mean scores.
            probability_N: float64 [N], calibrated.

        Returns:
            str [N]: empty where the label stands, otherwise `no neighbour`, `distance` or `confidence`.
        """
        far_N = nearness_N < self._least(names)[top_N]
        choices = [top_N < 0, far_N, probability_N < self.probability]
        picked = np.select(choices, [NO_NEIGHBOR_VOTED, TOO_FAR, TOO_UNSURE], default="")
        return [str(reason) for reason in picked]

    def _least(self, names: Sequence[str]) -> Floats:
        others = -math.inf if self.nearness_of_others is None else self.nearness_of_others
        # The entry behind the last label is what -1 picks.
        return np.array([*(self.nearness.get(name, others) for name in names), others])


def least_probability(
    probability_N: Floats, right_N: npt.NDArray[np.bool_], group_N: Codes, target_error: float
) -> float:
    """The threshold that accepts most cells while the error of one more group is bounded by a target.

    Args:
        probability_N: float64 [N].
        right_N: bool [N].
        group_N: int32 [N], donor or dataset of each cell, of two or more.
        target_error: Largest `error_bound` of the accepted cells, 0 to 1.

    Returns:
        A value of probability_N, accepted itself; infinity where no threshold has such a bound.
    """
    levels, place_N = np.unique(probability_N, return_inverse=True)
    groups, code_N = np.unique(group_N, return_inverse=True)
    accepted_GT, wrong_GT = np.zeros((2, len(groups), len(levels)), np.int64)
    np.add.at(accepted_GT, (code_N, place_N), 1)
    np.add.at(wrong_GT, (code_N, place_N), ~right_N)
    # A threshold accepts all cells of its level and above.
    accepted_GT, wrong_GT = (cells_GT[:, ::-1].cumsum(axis=1)[:, ::-1] for cells_GT in (accepted_GT, wrong_GT))
    good = np.flatnonzero(error_bound(wrong_GT, accepted_GT) <= target_error)
    return float(levels[good[0]]) if len(good) else math.inf


def least_nearness(
    names: Sequence[str], top_N: Codes, nearness_N: Floats, false_rejection: float
) -> tuple[dict[str, float], float | None]:
    """Thresholds of distance that reject at most a given share of the cells whose type the reference has.

    The threshold of n cells is their j-th smallest nearness with j = floor(rate (n + 1)), which a further cell of the
    same kind falls below with a probability of at most the rate (split conformal: Vovk et al. 2005,
    doi:10.1007/b106715). Each top label has its own threshold, because types differ in how close their cells lie;
    labels with too few cells for any j share the threshold of all cells.

    Args:
        names: Labels.
        top_N: int32 [N], place of the top label in names.
        nearness_N: float64 [N], mean scores.
        false_rejection: The rate, 0 to 1.

    Returns:
        Label -> least nearness; and that of all other labels, None where there are too few cells altogether.
    """
    own = {name: _quantile(nearness_N[top_N == code], false_rejection) for code, name in enumerate(names)}
    return {name: least for name, least in own.items() if least is not None}, _quantile(nearness_N, false_rejection)


def _quantile(nearness_N: Floats, rate: float) -> float | None:
    rank = min(math.floor(rate * (len(nearness_N) + 1)), len(nearness_N))
    return float(np.partition(nearness_N, rank - 1)[rank - 1]) if rank else None
