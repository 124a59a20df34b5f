"""Accuracy of the surest cells against how many they are, as rejection by confidence would leave them.

Shapes: N cells.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

COVERAGES = (1.0, 0.9, 0.8, 0.5)
"""Where accuracy is reported."""

_POINTS = 100


@dataclass(frozen=True, eq=False)
class CoverageCurve:
    """Accuracy of the i surest cells for every i."""

    accuracy: npt.NDArray[np.float64]
    """Of the i + 1 surest cells, [N]."""

    @property
    def coverage(self) -> npt.NDArray[np.float64]:
        """Share of all cells that the i + 1 surest are, [N]."""
        return np.arange(1, len(self.accuracy) + 1) / len(self.accuracy)

    @property
    def area(self) -> float:
        """Area under the curve: mean accuracy over all coverages, 1 - AURC (Geifman et al. 2019, arXiv:1805.08206)."""
        return float(self.accuracy.mean())

    def at(self, coverage: float) -> float:
        """Accuracy of that share of the cells, rounded up to a cell."""
        return float(self.accuracy[max(1, math.ceil(round(coverage * len(self.accuracy), 6))) - 1])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the curve at hundredths of coverage."""
        shares = [point / _POINTS for point in range(1, _POINTS + 1)]
        return {
            "area": self.area,
            "accuracy_at": {f"{coverage:g}": self.at(coverage) for coverage in COVERAGES},
            "curve": {"coverage": shares, "accuracy": [self.at(share) for share in shares]},
        }

    def table(self) -> str:
        """Accuracy at a few coverages as text for a terminal."""
        lines = [f"{coverage:8.0%}  {self.at(coverage):8.3f}" for coverage in COVERAGES]
        return "\n".join(["coverage  accuracy", *lines, f"area under the curve {self.area:.3f}"])


def coverage_curve(confidence_N: npt.NDArray[np.floating], right_N: npt.NDArray[np.bool_]) -> CoverageCurve:
    """Accept cells from the surest to the least sure.

    Cells of equal confidence are taken in the mean over all their orders, so that the curve does not depend on the
    order of the cells.

    Args:
        confidence_N: [N], N at least 1.
        right_N: bool [N], whether the prediction was right.
    """
    assert len(confidence_N) == len(right_N) > 0, (len(confidence_N), len(right_N))
    _, place_N = np.unique(-confidence_N, return_inverse=True)
    ends = np.concatenate([[0], np.bincount(place_N).cumsum()])
    right_at_end = np.concatenate([[0], np.bincount(place_N, right_N).cumsum()])
    accepted_N = np.arange(1, len(right_N) + 1)
    return CoverageCurve(np.interp(accepted_N, ends, right_at_end) / accepted_N)
