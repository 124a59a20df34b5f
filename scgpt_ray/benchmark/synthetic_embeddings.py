"""Synthetic embeddings with the local structure of real ones.

A new vector is a cell of the base, plus a random step in the space spanned by its nearest neighbours, plus noise of
the size of the residual that they leave:

    new = cell + sum_j g_j (neighbour_j - their mean) / sqrt(k) + noise,    g_j ~ N(0, 1), j = 1..k

normalised to unit length. The new vectors of a cell have the covariance of its neighbourhood (a kernel density estimate
with local kernels, as manifold Parzen windows of Vincent and Bengio). The noise is isotropic; its variance is that of
the residual of the cell after projection onto the space of its neighbours. Plain Gaussian noise would instead put every
cell at the same distance from all others of its type, where no index works.

`intrinsic_dimension` and `contrast` of base and new vectors measure how well the structure is preserved.

Shapes: B cells of the base, D width, K neighbours, C children of a cell in one round.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scgpt_ray.index.recall import without_self
from scgpt_ray.index.search import Neighbors, exact_search
from scgpt_ray.schema import Float32Matrix, Int64Array

NEIGHBOURHOOD = 16
"""Number of neighbours that span the steps of a cell."""

_DIMENSION_K = 20
_CHILDREN = 8
_PARENTS = 2048


@dataclass(frozen=True)
class Growth:
    """A generator of new vectors around those of a base.

    Attributes:
        base_BD: float32 [B, d], unit vectors.
        neighbours_BK: int64 [B, K], rows of the neighbours of each cell, without the cell itself.
        noise_B: float32 [B], standard deviation of the noise of each coordinate.
    """

    base_BD: Float32Matrix
    neighbours_BK: Int64Array
    noise_B: Float32Matrix

    @classmethod
    def of(cls, base_BD: Float32Matrix) -> "Growth":
        """Determine the neighbourhood of every cell of a base.

        Args:
            base_BD: float32 [B, d], unit vectors, more than `NEIGHBOURHOOD` of them and distinct.
        """
        assert len(base_BD) > NEIGHBOURHOOD, "a neighbourhood has neighbours"
        neighbours_BK, _ = _others(base_BD, np.arange(len(base_BD)), NEIGHBOURHOOD)
        chunks = range(0, len(base_BD), _PARENTS)
        noise = [_residual(base_BD, neighbours_BK, slice(start, start + _PARENTS)) for start in chunks]
        return cls(base_BD, neighbours_BK, np.concatenate(noise))

    def blocks(self, n: int, seed: int) -> Iterator[Float32Matrix]:
        """Generate n unit vectors in blocks float32 [.., d], the same for a seed, each from all over the base."""
        rng = np.random.default_rng(seed)
        while n > 0:
            for parents in np.array_split(rng.permutation(len(self.base_BD)), -(-len(self.base_BD) // _PARENTS)):
                block_ND = self._children(parents, rng)[:n]
                yield block_ND
                n -= len(block_ND)
                if n == 0:
                    return

    def _children(self, parents_P: Int64Array, rng: np.random.Generator) -> Float32Matrix:
        """New vectors of each parent, [C * P, d]; those of the same parent are far apart in the list."""
        near_PKD = self.base_BD[self.neighbours_BK[parents_P]]
        near_PKD -= near_PKD.mean(axis=1, keepdims=True)
        k, d = near_PKD.shape[1:]
        steps_PCK = rng.standard_normal((len(parents_P), _CHILDREN, k), np.float32) / np.float32(np.sqrt(k))
        born_PCD = steps_PCK @ near_PKD + self.base_BD[parents_P][:, None]
        noise_PCD = rng.standard_normal((len(parents_P), _CHILDREN, d), np.float32)
        noise_PCD *= self.noise_B[parents_P][:, None, None]
        born_PCD += noise_PCD
        born_PCD /= np.linalg.norm(born_PCD, axis=2, keepdims=True)
        return np.asarray(born_PCD.transpose(1, 0, 2).reshape(-1, d), np.float32)


def _residual(base_BD: Float32Matrix, neighbours_BK: Int64Array, rows: slice) -> Float32Matrix:
    """Deviation per coordinate of cells from the space of their neighbours, float32 [rows]."""
    near_PKD = base_BD[neighbours_BK[rows]].astype(np.float64)
    centre_PD = near_PKD.mean(axis=1)
    near_PKD -= centre_PD[:, None]
    offset_PD = base_BD[rows] - centre_PD
    gram_PKK = near_PKD @ near_PKD.transpose(0, 2, 1)
    k, d = near_PKD.shape[1:]
    weights_PK1 = np.linalg.pinv(gram_PKK, rcond=1e-6, hermitian=True) @ (near_PKD @ offset_PD[:, :, None])
    left_PD = offset_PD - (near_PKD.transpose(0, 2, 1) @ weights_PK1)[..., 0]
    return np.asarray(np.sqrt((left_PD**2).sum(axis=1) / max(1, d - k)), np.float32)


def _others(vectors_ND: Float32Matrix, rows_Q: Int64Array, k: int) -> Neighbors:
    """The k nearest other cells of some rows, and their scores."""
    found = exact_search([(np.arange(len(vectors_ND)), vectors_ND)], vectors_ND[rows_Q], k + 1)
    return without_self(*found, rows_Q)


def intrinsic_dimension(vectors_ND: Float32Matrix, rows_Q: Int64Array) -> float:
    """Median local intrinsic dimension around some rows: Levina and Bickel (2004), 20 neighbours."""
    _, scores_QK = _others(vectors_ND, rows_Q, _DIMENSION_K)
    distance_QK = np.sqrt(np.maximum(2 - 2 * scores_QK.astype(np.float64), 1e-12))
    ratios_Q = np.log(distance_QK[:, -1:] / distance_QK[:, :-1]).sum(axis=1)
    return float(np.median((_DIMENSION_K - 2) / np.maximum(ratios_Q, 1e-12)))


def contrast(vectors_ND: Float32Matrix, rows_Q: Int64Array) -> float:
    """Median distance of the tenth neighbour relative to that of a random cell; near 1 without structure."""
    _, scores_QK = _others(vectors_ND, rows_Q, 10)
    random_Q = np.random.default_rng(0).integers(0, len(vectors_ND), len(rows_Q))
    far_Q = np.einsum("qd,qd->q", vectors_ND[rows_Q], vectors_ND[random_Q])
    near, far = (np.median(np.sqrt(np.maximum(2 - 2 * scores, 0))) for scores in (scores_QK[:, -1], far_Q))
    return float(near / far)
