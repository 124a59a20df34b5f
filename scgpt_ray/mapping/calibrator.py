"""From the figures of a vote to the probability that its winner is right.

Shapes: N cells, F = 3 figures of a vote, J knots.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from scgpt_ray.mapping.isotonic import isotonic_blocks
from scgpt_ray.mapping.vote import Election, Floats

FIGURES = ("share", "margin", "nearness")
"""What a vote is evaluated by: share of the winner, its lead, mean score of the voters."""


@dataclass(frozen=True)
class Calibrator:
    """A nondecreasing function of each of the figures.

    A weighted sum of the standardised figures ranks the votes, with weights of at least 0 fitted by logistic
    regression; isotonic regression on that sum gives the probability (Zadrozny and Elkan 2002,
    doi:10.1145/775047.775151). The share alone takes few values (K + 1 in a plain vote): the sum ranks votes that it
    cannot tell apart.
    """

    mean: tuple[float, ...]
    """Of each figure over the calibration cells, [F]."""
    deviation: tuple[float, ...]
    """Standard deviations, [F]; 1 for a figure that does not vary."""
    slope: tuple[float, ...]
    """Weights, [F], at least 0."""
    knots: tuple[float, ...]
    """Sums at which a level starts or ends, [J], ascending."""
    levels: tuple[float, ...]
    """Probabilities there, [J], ascending; straight between them, constant outside."""

    def probability(self, election: Election) -> Floats:
        """Probability that the winner is right, float64 [N] in (0, 1); 0 where nobody voted."""
        sum_N = _sum(_figures(election), self.mean, self.deviation, self.slope)
        return np.where(election.held, np.interp(sum_N, self.knots, self.levels), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(values) for name, values in vars(self).items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Calibrator":
        """The inverse of `to_dict`."""
        return cls(**{name: tuple(values) for name, values in plain.items()})


def fit_calibrator(election: Election, right_N: npt.NDArray[np.bool_]) -> Calibrator:
    """Fit to votes whose outcome is known.

    Args:
        election: Votes of N cells, N at least 1, held in all.
        right_N: bool [N], whether the winner was right.
    """
    assert len(right_N) == len(election.winner) > 0, (len(right_N), len(election.winner))
    assert election.held.all(), "leave out who got no vote"
    figures_NF = _figures(election)
    mean_F, deviation_F = figures_NF.mean(axis=0), figures_NF.std(axis=0)
    deviation_F[np.ptp(figures_NF, axis=0) == 0] = 1.0
    slope_F = _slopes((figures_NF - mean_F) / deviation_F, right_N)
    sum_N = _sum(figures_NF, mean_F, deviation_F, slope_F)
    # A wrong cell above all and a right one below keep the probability from 0 and 1, which no sample proves.
    least_B, greatest_B, level_B = isotonic_blocks(
        np.append(sum_N, [sum_N.min(), sum_N.max()]), np.append(right_N, [1.0, 0.0])
    )
    knots, first = np.unique(np.column_stack([least_B, greatest_B]).ravel(), return_index=True)
    levels = np.repeat(level_B, 2)[first]
    return Calibrator(*(tuple(v.tolist()) for v in (mean_F, deviation_F, slope_F, knots, levels)))


def _figures(election: Election) -> Floats:
    nearness_N = np.where(election.held, election.nearness, 0.0)
    return np.column_stack([election.share, election.margin, nearness_N])


def _sum(figures_NF: Floats, mean_F: npt.ArrayLike, deviation_F: npt.ArrayLike, slope_F: npt.ArrayLike) -> Floats:
    # Term by term, because a matrix product may round one cell otherwise beside other cells.
    terms_NF = (figures_NF - np.asarray(mean_F)) / np.asarray(deviation_F) * np.asarray(slope_F)
    sum_N: Floats = terms_NF[:, 0] + terms_NF[:, 1] + terms_NF[:, 2]
    return sum_N


def _slopes(standard_NF: Floats, right_N: npt.NDArray[np.bool_]) -> Floats:
    """Logistic regression under a standard normal prior, with slopes of at least 0, [F]."""
    design = np.column_stack([np.ones(len(standard_NF)), standard_NF])
    sign_N = np.where(right_N, 1.0, -1.0)

    def loss(weights: Floats) -> tuple[float, Floats]:
        score_N = sign_N * (design @ weights)
        doubt_N = np.exp(-np.logaddexp(0, score_N))
        return float(np.logaddexp(0, -score_N).sum() + weights @ weights / 2), weights - design.T @ (sign_N * doubt_N)

    bounds = [(None, None)] + [(0, None)] * standard_NF.shape[1]
    fitted = minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(fitted.x[1:], np.float64)
