"""Sums of counts over the cells of a label that one replicate has at one level, and their depth.

Shape suffixes: N cells, G genes, U units (a replicate at a level).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.evaluation.neighbors import groups_of
from scgpt_ray.evaluation.sample import strata_of
from scgpt_ray.schema import Int64Array

MIN_CELLS = 10
"""Cells of a label below which a unit is left out of that label."""

_EXPECTED_COUNTS, _GENES = 20, 30


@dataclass(frozen=True, eq=False)
class Pseudobulk:
    """The units of a label.

    Attributes:
        label: Number of the label.
        replicate_U: int64 [units].
        level_U: int64 [units].
        n_cells_U: Cells of each unit, int64 [units].
        counts_UG: Sums of their counts [units, genes], CSR.
        size_U: Their depth: total counts, as they would be if no single gene had changed, float64 [units].
    """

    label: int
    replicate_U: Int64Array
    level_U: Int64Array
    n_cells_U: Int64Array
    counts_UG: sparse.csr_matrix
    size_U: npt.NDArray[np.float64]


def pseudobulks(
    counts_NG: sparse.csr_matrix, label_N: Int64Array, replicate_N: Int64Array, level_N: Int64Array
) -> list[Pseudobulk]:
    """Sum the counts of each label by replicate and level.

    Args:
        counts_NG: Counts [n, genes], CSR.
        label_N: int64 [n].
        replicate_N: int64 [n].
        level_N: int64 [n].

    Returns:
        One per label with units of two levels. Left out are units of fewer than ten cells, and those of which fewer
        than 30 genes are expected to have 20 counts, too few for their depth.
    """
    found = []
    for in_label in groups_of(label_N):
        units = groups_of(strata_of(replicate_N[in_label], level_N[in_label]))
        first_U = in_label[[unit[0] for unit in units]]
        n_cells_U = np.array([len(unit) for unit in units])
        rows, cells = np.repeat(np.arange(len(units)), n_cells_U), np.concatenate(units)
        member_UN = sparse.csr_matrix((np.ones(len(cells)), (rows, cells)), shape=(len(units), len(in_label)))
        counts_UG = sparse.csr_matrix(member_UN @ counts_NG[in_label])
        enough = np.flatnonzero(n_cells_U >= MIN_CELLS)
        if not len(enough):
            continue
        size_U = depths(counts_UG[enough])
        kept = enough[np.isfinite(size_U)]
        level_U = level_N[first_U[kept]]
        if len(np.unique(level_U)) > 1:
            found.append(
                Pseudobulk(
                    label=int(label_N[in_label[0]]),
                    replicate_U=replicate_N[first_U[kept]],
                    level_U=level_U,
                    n_cells_U=n_cells_U[kept],
                    counts_UG=counts_UG[kept],
                    size_U=size_U[np.isfinite(size_U)],
                )
            )
    return found


def depths(counts_UG: sparse.csr_matrix) -> npt.NDArray[np.float64]:
    """Depth of each unit: its total times the median over genes of its share of the counts to the mean share.

    The total alone depends on a few highly expressed genes; the median ratio (the size factors of Anders and Huber
    2010, doi:10.1186/gb-2010-11-10-r106) does not, as long as fewer than half of the genes change.

    Returns:
        float64 [units]; NaN where fewer than 30 genes are expected to have 20 counts.
    """
    total_U = np.asarray(counts_UG.sum(axis=1), np.float64).ravel()
    share_UG = sparse.csr_matrix(sparse.diags(1 / np.maximum(total_U, 1)) @ counts_UG)
    mean_G = np.asarray(share_UG.mean(axis=0), np.float64).ravel()
    depth_U = np.full(len(total_U), np.nan)
    for unit, total in enumerate(total_U):
        genes = np.flatnonzero(mean_G * total >= _EXPECTED_COUNTS)
        if len(genes) >= _GENES:
            depth_U[unit] = total * np.median(share_UG[unit, genes].toarray()[0] / mean_G[genes])
    return depth_U
