"""The probability that a vote is right, and whether such a probability means what it says.

Shapes: N cells, F = 3 figures of a vote, J knots.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from scgpt_ray.mapping.votes import Floats, VoteTally

N_BINS = 10


@dataclass(frozen=True)
class Calibrator:
    """A nondecreasing function of three figures of a vote: share of the top label, its lead, mean score of the voters.

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

    def probability(self, tally: VoteTally) -> Floats:
        """Probability that the top label is right, float64 [N] in (0, 1); 0 where no neighbour voted."""
        sum_N = _sum(_figures(tally), self.mean, self.deviation, self.slope)
        return np.where(tally.has_votes, np.interp(sum_N, self.knots, self.levels), 0.0)


def fit_calibrator(tally: VoteTally, right_N: npt.NDArray[np.bool_]) -> Calibrator:
    """Fit to votes whose outcome is known.

    Args:
        tally: Of N cells, N at least 1, all with votes.
        right_N: bool [N], whether the top label was right.
    """
    assert len(right_N) == len(tally.top) > 0, (len(right_N), len(tally.top))
    assert tally.has_votes.all(), "leave out cells without votes"
    figures_NF = _figures(tally)
    mean_F, deviation_F = figures_NF.mean(axis=0), figures_NF.std(axis=0)
    deviation_F[np.ptp(figures_NF, axis=0) == 0] = 1.0
    slope_F = _slopes((figures_NF - mean_F) / deviation_F, right_N)
    sum_N = _sum(figures_NF, mean_F, deviation_F, slope_F)
    # A wrong cell above all and a right one below keep the probability from 0 and 1, which no sample proves.
    curve = IsotonicRegression().fit(np.append(sum_N, [sum_N.min(), sum_N.max()]), np.append(right_N, [1.0, 0.0]))
    fitted = (mean_F, deviation_F, slope_F, curve.X_thresholds_, curve.y_thresholds_)
    return Calibrator(*(tuple(values.tolist()) for values in fitted))


def _figures(tally: VoteTally) -> Floats:
    nearness_N = np.where(tally.has_votes, tally.nearness, 0.0)
    return np.column_stack([tally.share, tally.margin, nearness_N])


def _sum(figures_NF: Floats, mean_F: npt.ArrayLike, deviation_F: npt.ArrayLike, slope_F: npt.ArrayLike) -> Floats:
    # Term by term, because a matrix product may round a cell differently next to other cells.
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


@dataclass(frozen=True)
class Bin:
    """Cells of about the same confidence."""

    cells: int
    confidence: float
    """Their mean confidence."""
    accuracy: float
    """Share of them that is right."""


@dataclass(frozen=True)
class Reliability:
    """The reliability curve: confidence against accuracy, in bins of equal width."""

    bins: tuple[Bin, ...]
    """Those that have cells, by rising confidence."""
    ece: float = field(init=False)
    """Expected calibration error: the mean gap of confidence and accuracy over the cells.

    ECE = sum over bins of (n_b / N) |accuracy_b - confidence_b| (Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602).
    """

    def __post_init__(self) -> None:
        gap = sum(part.cells * abs(part.accuracy - part.confidence) for part in self.bins)
        object.__setattr__(self, "ece", gap / max(1, self.n_cells))

    @property
    def n_cells(self) -> int:
        """Cells over all bins."""
        return sum(part.cells for part in self.bins)


def reliability(
    confidence_N: npt.NDArray[np.floating], right_N: npt.NDArray[np.bool_], n_bins: int = N_BINS
) -> Reliability:
    """Measure the reliability of a confidence.

    scikit-learn's calibration_curve gives the same curve, but not the cells of each bin that the error needs.

    Args:
        confidence_N: [N], 0 to 1, N at least 1; bin b of n holds those in (b / n, (b + 1) / n], the first also 0.
        right_N: bool [N], whether the prediction was right.
        n_bins: Bins of equal width.
    """
    assert len(confidence_N) == len(right_N) > 0, (len(confidence_N), len(right_N))
    # Rounded, so that a share of 0.3 that is a hair above 3 / 10 stays in its bin.
    place_N = np.clip(np.ceil((confidence_N.astype(np.float64) * n_bins).round(6)).astype(np.int64) - 1, 0, n_bins - 1)
    cells = np.bincount(place_N, minlength=n_bins)
    confidence = np.bincount(place_N, confidence_N, minlength=n_bins)
    right = np.bincount(place_N, right_N, minlength=n_bins)
    return Reliability(
        tuple(
            Bin(int(cells[b]), float(confidence[b] / cells[b]), float(right[b] / cells[b]))
            for b in np.flatnonzero(cells)
        )
    )
