"""Exact nearest neighbours of evaluated cells, groups of cells, and the variance between groups.

Shape suffixes: N cells, D dimensions, K neighbours.
"""

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from scgpt_ray.schema import Float32Matrix, Int64Array


def nearest(vectors_ND: Float32Matrix, k: int) -> tuple[Int64Array, npt.NDArray[np.float32]]:
    """The k nearest other cells of each cell by Euclidean distance, by exhaustive search.

    Args:
        vectors_ND: float32 [n, d].
        k: Number of neighbours, < n.

    Returns:
        Positions int64 [n, k] and distances float32 [n, k], nearest first; a cell is not its own neighbour.
    """
    assert 0 < k < len(vectors_ND), f"{k} neighbours among {len(vectors_ND)} cells"
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors_ND)
    distances_NK, places_NK = search.kneighbors()
    return places_NK.astype(np.int64), distances_NK.astype(np.float32)


def with_self(
    places_NK: Int64Array, distances_NK: npt.NDArray[np.float32]
) -> tuple[Int64Array, npt.NDArray[np.float32]]:
    """Prepend each cell as its own nearest neighbour, which scib-metrics and scanpy expect."""
    own = np.arange(len(places_NK))[:, None]
    return np.hstack([own, places_NK]), np.hstack([np.zeros(own.shape, np.float32), distances_NK])


def groups_of(codes_N: Int64Array) -> list[Int64Array]:
    """Positions of the cells of each group (int64, ascending), in order of the codes; no group is empty."""
    order = np.argsort(codes_N, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes_N[order])) + 1)


def between_groups(centred_ND: npt.NDArray[np.floating], codes_N: Int64Array) -> float:
    """Sum of squares that lies between groups, which is what the means of the groups explain.

    Args:
        centred_ND: Vectors minus their mean, [n, d].
        codes_N: Group of each, int64 [n].
    """
    return float(sum((centred_ND[cells].sum(axis=0) ** 2).sum() / len(cells) for cells in groups_of(codes_N)))
