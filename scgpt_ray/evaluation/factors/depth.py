"""Sequencing depth of cells, estimated from the genes that do not change, and thinning to equal depth.

The plain sum of the counts of a cell would depend on a few highly expressed genes. The depth is that sum times the
median, over well expressed genes, of the level's share of the counts relative to the mean share over the levels of the
label (the size factors of Anders and Huber 2010, doi:10.1186/gb-2010-11-10-r106, on sums over cells). It is robust as
long as fewer than half of the genes change.
"""

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.evaluation.factors.contrast import level_sums
from scgpt_ray.evaluation.neighbors import groups_of
from scgpt_ray.schema import Int64Array

MIN_CELLS_PER_LEVEL = 20
"""A level with fewer cells in a label is left out of that label."""

_COUNTS_PER_LEVEL = 20
_GENES = 30


def robust_depth(counts_NG: sparse.csr_matrix, label_N: Int64Array, level_N: Int64Array) -> npt.NDArray[np.float64]:
    """Depth of each cell, comparable between the levels of a label.

    Args:
        counts_NG: Counts [n, genes], CSR.
        label_N: int64 [n].
        level_N: int64 [n], numbered from 0.

    Returns:
        float64 [n], in counts; NaN for cells that are left out: those of levels with fewer than 20 cells in their
        label, and those of labels with fewer than two remaining levels, or with fewer than 30 genes of which at least
        20 counts are expected in each level.
    """
    total_N = np.asarray(counts_NG.sum(axis=1), np.float64).ravel()
    depth_N = np.full(len(total_N), np.nan)
    for in_label in groups_of(label_N):
        enough = np.bincount(level_N[in_label]) >= MIN_CELLS_PER_LEVEL
        cells = in_label[enough[level_N[in_label]]]
        levels, level = np.unique(level_N[cells], return_inverse=True)
        if len(levels) < 2:  # noqa: PLR2004 - a comparison takes two
            continue
        sum_LG = level_sums(counts_NG[cells], level, len(levels))
        total_L = sum_LG.sum(axis=1)
        expressed = sum_LG.sum(axis=0) / total_L.sum() * total_L.min() >= _COUNTS_PER_LEVEL
        if expressed.sum() < _GENES:
            continue
        share_LG = sum_LG[:, expressed] / total_L[:, None]
        factor_L = np.median(share_LG / share_LG.mean(axis=0), axis=1)
        depth_N[cells] = total_N[cells] * factor_L[level]
    return depth_N


def matched_depth(
    depth_N: npt.NDArray[np.float64], label_N: Int64Array, level_N: Int64Array
) -> npt.NDArray[np.float64]:
    """Target depth of each cell, with which all levels of a label have the same distribution of depths.

    A cell keeps its quantile in its level; its target is the smallest depth over the levels at that quantile.

    Returns:
        float64 [n], at most `depth_N`.
    """
    target_N = depth_N.copy()
    for cells in groups_of(label_N):
        of_level = [cells[level_N[cells] == level] for level in np.unique(level_N[cells])]
        for mine in of_level:
            quantile = np.empty(len(mine))
            quantile[np.argsort(depth_N[mine], kind="stable")] = _quantiles(len(mine))
            for other in of_level:
                depth_of_other = np.interp(quantile, _quantiles(len(other)), np.sort(depth_N[other]))
                target_N[mine] = np.minimum(target_N[mine], depth_of_other)
    return target_N


def thinned(counts_NG: sparse.csr_matrix, kept_N: npt.NDArray[np.float64], *, seed: int) -> sparse.csr_matrix:
    """Binomial thinning, which simulates sequencing at lower depth.

    Args:
        counts_NG: Counts [n, genes], CSR, whole numbers.
        kept_N: Probability with which each count of a cell is kept, float64 [n].
        seed: Seed of the draw.
    """
    probability = np.repeat(kept_N, np.diff(counts_NG.indptr))
    drawn = np.random.default_rng(seed).binomial(counts_NG.data.astype(np.int64), probability)
    fewer_NG = sparse.csr_matrix((drawn.astype(np.float64), counts_NG.indices, counts_NG.indptr), counts_NG.shape)
    fewer_NG = fewer_NG.copy()  # eliminate_zeros would change the indices of the caller
    fewer_NG.eliminate_zeros()
    return fewer_NG


def _quantiles(n: int) -> npt.NDArray[np.float64]:
    return (np.arange(n) + 0.5) / n
