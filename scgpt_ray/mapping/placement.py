"""Where query cells lie, compared with the distances between reference cells of different groups.

Shapes: Q query cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scgpt_ray.mapping.votes import Floats
from scgpt_ray.records import RANDOM_FIFTHS, NeighborDistances

_ELSEWHERE = 0.1
"""Share of far cells from which a query is said to come from elsewhere: ten times what the reference's own cells have.
"""
_LEAST_CELLS = 20  # of a sample that is named


@dataclass(frozen=True)
class Placement:
    """How many query cells are farther from their neighbours than reference cells are."""

    held_out: str
    """Groups of the reference that were compared."""
    limit: float
    """Cosine distance to the farthest voter that one reference cell in a hundred exceeds."""
    far: float
    """Share of the query cells beyond it."""
    by_sample: Mapping[str, float]
    """The same for each sample of the query, most first; empty without a column of samples."""

    @property
    def elsewhere(self) -> list[str]:
        """Samples with many far cells."""
        return [name for name, share in self.by_sample.items() if share > _ELSEWHERE]

    @property
    def is_elsewhere(self) -> bool:
        """Whether the query, or one of its samples, is not like the reference."""
        return self.far > _ELSEWHERE or bool(self.elsewhere)

    def text(self) -> str:
        """A sentence for a person."""
        others = "other cells" if self.held_out == RANDOM_FIFTHS else f"those of another {self.held_out}"
        said = (
            f"{self.far:.1%} of the query cells are farther from reference cells than 99% of the reference's own cells "
            f"are from {others}"
        )
        if self.is_elsewhere:
            said += ": the query comes from elsewhere, and what is expected of new cells does not hold for it"
        if self.elsewhere:
            said += f" ({', '.join(f'{name} {self.by_sample[name]:.0%}' for name in self.elsewhere[:5])})"
        return said


def is_far(distances: NeighborDistances, k: int, distance_Q: Floats) -> npt.NDArray[np.bool_] | None:
    """Whether query cells are farther from their k-th neighbour than reference cells, bool [Q].

    Args:
        distances: Of the reference.
        k: Neighbours that voted.
        distance_Q: float64 [Q], cosine distance to the k-th; NaN without neighbours, which is not far.

    Returns:
        None where the reference's distances do not reach so many neighbours.
    """
    if k > len(distances.far):
        return None
    return np.asarray(distance_Q > distances.far[k - 1], bool)


def placement(distances: NeighborDistances, k: int, cells: Mapping[str | None, tuple[int, int]]) -> Placement | None:
    """Compare a query with the reference.

    Args:
        distances: As `is_far`.
        k: Likewise.
        cells: Sample of the query -> its cells with neighbours, and how many of them are far; None for those without.

    Returns:
        None where nothing can be compared.
    """
    found = sum(n for n, _ in cells.values())
    if k > len(distances.far) or not found:
        return None
    named = ((name, n, far) for name, (n, far) in cells.items() if name is not None)
    shares = {name: far / n for name, n, far in named if n >= _LEAST_CELLS}
    ranked = dict(sorted(shares.items(), key=lambda entry: (-entry[1], entry[0])))
    return Placement(distances.held_out, distances.far[k - 1], sum(far for _, far in cells.values()) / found, ranked)
