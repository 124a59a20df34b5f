"""Whether a confidence means what it says: the reliability curve and its error.

Shapes: N cells, B bins that have cells.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

N_BINS = 10


@dataclass(frozen=True)
class Bin:
    """Cells of about the same confidence."""

    cells: int
    confidence: float
    """Their mean confidence."""
    accuracy: float
    """The share of them that is right."""


@dataclass(frozen=True)
class Reliability:
    """The reliability curve: confidence against accuracy, in bins of equal width."""

    bins: tuple[Bin, ...]
    """Those that have cells, by rising confidence."""

    @property
    def n_cells(self) -> int:
        """Cells over all bins."""
        return sum(part.cells for part in self.bins)

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap of confidence and accuracy over the cells.

        ECE = sum over bins of (n_b / N) |accuracy_b - confidence_b| (Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602).
        """
        return sum(part.cells * abs(part.accuracy - part.confidence) for part in self.bins) / self.n_cells

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"ece": self.ece, "bins": [vars(part) for part in self.bins]}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Reliability":
        """The inverse of `to_dict`."""
        return cls(tuple(Bin(**part) for part in plain["bins"]))

    def table(self) -> str:
        """The curve as text for a terminal, one line per bin."""
        lines = [f"{part.confidence:10.3f}  {part.accuracy:8.3f}  {part.cells:7,}" for part in self.bins]
        total = f"expected calibration error {self.ece:.3f} over {self.n_cells:,} cells"
        return "\n".join(["confidence  accuracy    cells", *lines, total])


def reliability(
    confidence_N: npt.NDArray[np.floating], right_N: npt.NDArray[np.bool_], n_bins: int = N_BINS
) -> Reliability:
    """Measure the reliability of a confidence.

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
