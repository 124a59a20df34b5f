"""Accuracy of the surest cells against how many they are, as rejection by confidence would leave them.

Shapes: N cells.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SHARES = (1.0, 0.9, 0.8, 0.5)
"""Shares of the cells whose accuracy is reported."""

_POINTS = 100


@dataclass(frozen=True, eq=False)
class SelectiveAccuracy:
    """Accuracy of the i surest cells for every i."""

    accuracy: npt.NDArray[np.float64]
    """Of the i + 1 surest cells, [N]."""

    @property
    def share(self) -> npt.NDArray[np.float64]:
        """Share of all cells that the i + 1 surest are, [N]."""
        return np.arange(1, len(self.accuracy) + 1) / len(self.accuracy)

    @property
    def area(self) -> float:
        """Area under the curve: mean accuracy over all shares, 1 - AURC (Geifman et al. 2019, arXiv:1805.08206)."""
        return float(self.accuracy.mean())

    def at(self, share: float) -> float:
        """Accuracy of that share of the cells, the surest, rounded up to a cell."""
        return float(self.accuracy[max(1, math.ceil(round(share * len(self.accuracy), 6))) - 1])

    def accuracy_at(self) -> dict[str, float]:
        """Share of the cells, the surest -> their accuracy, for each of `SHARES`."""
        return {f"{share:g}": self.at(share) for share in SHARES}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the curve at every hundredth of the cells."""
        shares = [point / _POINTS for point in range(1, _POINTS + 1)]
        return {
            "area": self.area,
            "accuracy_at": self.accuracy_at(),
            "curve": {"share": shares, "accuracy": [self.at(share) for share in shares]},
        }


def selective_accuracy(confidence_N: npt.NDArray[np.floating], right_N: npt.NDArray[np.bool_]) -> SelectiveAccuracy:
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
    return SelectiveAccuracy(np.interp(accepted_N, ends, right_at_end) / accepted_N)
