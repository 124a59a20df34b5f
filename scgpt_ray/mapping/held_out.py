"""A calibration on cells of groups that it was not fitted to: overall, by predicted label and by group.

Shapes: N cells of the calibration sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from scgpt_ray.mapping.calibration_sample import Sample
from scgpt_ray.mapping.calibrator import Reliability, reliability
from scgpt_ray.mapping.rejection import TOO_FAR
from scgpt_ray.mapping.votes import Floats, named

_LIMIT = 0.95  # confidence of the upper limit of an error

Reasons = npt.NDArray[np.object_]
"""Why cells are rejected, str [N]; empty where they are accepted."""


@dataclass(frozen=True)
class Outcome:
    """What became of some held-out cells."""

    cells: int
    right: int
    """Cells whose vote is right, accepted or not."""
    accepted: int
    wrong_accepted: int
    error: float | None = field(init=False)
    """Wrong labels among the accepted, a fraction; None where no cell is accepted."""
    error_limit: float = field(init=False)
    """Upper 95 % confidence limit of the error (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404), as if the cells
    were independent; 1 where no cell is accepted."""

    def __post_init__(self) -> None:
        limit = 1.0
        if self.wrong_accepted < self.accepted:
            limit = float(beta.ppf(_LIMIT, self.wrong_accepted + 1, self.accepted - self.wrong_accepted))
        object.__setattr__(self, "error", self.wrong_accepted / self.accepted if self.accepted else None)
        object.__setattr__(self, "error_limit", limit)

    @classmethod
    def of(cls, right_N: npt.NDArray[np.bool_], accepted_N: npt.NDArray[np.bool_]) -> "Outcome":
        """Count cells by whether they are right and accepted, bool [N] each."""
        return cls(len(right_N), int(right_N.sum()), int(accepted_N.sum()), int((accepted_N & ~right_N).sum()))


@dataclass(frozen=True)
class Withheld:
    """Cells of one label that were mapped as if the reference lacked it."""

    cells: int
    too_far: float
    """Share of them rejected by distance."""
    rejected: float
    """Share of them rejected for any reason."""


@dataclass(frozen=True)
class HeldOut:
    """The calibration on cells of groups that it was not fitted to (cross-validated); fractions of 1."""

    cells: int
    groups: int
    accuracy: float
    """Of all cells."""
    before: Reliability
    """Of the share of the votes."""
    after: Reliability
    """Of the calibrated probability."""
    accepted: float
    """Cells that keep their label."""
    error_accepted: float | None
    """Wrong labels among these; None where no cell keeps its label."""
    false_rejection: float
    """Cells rejected by distance."""
    by_label: Mapping[str, Outcome]
    """By predicted label, before rejection."""
    by_group: Mapping[str, Outcome]
    """By donor or dataset."""
    withheld: Mapping[str, Withheld]
    """By label; empty where no cell was mapped without its own label."""

    @classmethod
    def of(cls, sample: Sample, probability_N: Floats, reason_N: Reasons, withheld_N: Reasons) -> "HeldOut":
        """Compare held-out cells with their own labels.

        Args:
            sample: The cells.
            probability_N: float64 [N], calibrated on other groups than the cell's own.
            reason_N: Why the cells are rejected, likewise.
            withheld_N: Likewise, of the votes without the neighbours of a cell's own label.
        """
        right_N, accepted_N = sample.right, reason_N == ""
        predicted_N = named(sample.names, sample.tally.top)
        group_N = named(sample.group_names, sample.group)
        return cls(
            cells=len(right_N),
            groups=sample.n_groups,
            accuracy=float(right_N.mean()),
            before=reliability(sample.tally.share, right_N),
            after=reliability(probability_N, right_N),
            accepted=float(accepted_N.mean()),
            error_accepted=float((~right_N[accepted_N]).mean()) if accepted_N.any() else None,
            false_rejection=float((reason_N == TOO_FAR).mean()),
            by_label=_outcomes(predicted_N, right_N, accepted_N),
            by_group=_outcomes(group_N, right_N, accepted_N),
            withheld={} if sample.withheld is None else _withheld(sample.truth, withheld_N),
        )


def _outcomes(
    name_N: npt.NDArray[np.object_], right_N: npt.NDArray[np.bool_], accepted_N: npt.NDArray[np.bool_]
) -> dict[str, Outcome]:
    return {name: Outcome.of(right_N[name_N == name], accepted_N[name_N == name]) for name in sorted(set(name_N))}


def _withheld(truth_N: npt.NDArray[np.object_], reason_N: Reasons) -> dict[str, Withheld]:
    found = {}
    for label in sorted(set(truth_N)):
        reason = reason_N[truth_N == label]
        found[label] = Withheld(len(reason), float((reason == TOO_FAR).mean()), float((reason != "").mean()))
    return found
