"""Differences between the levels of a factor, within labels and pooled over labels.

Shape suffixes: N cells, G genes, L levels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.evaluation.neighbors import groups_of
from scgpt_ray.schema import Int64Array

Float64Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Each level against the other levels of the same labels, per gene; NaN if its labels have no other level.

    Attributes:
        level_LG: Mean of the level, float64 [levels, genes]; the weight of a label is n1 n2 / (n1 + n2).
        others_LG: Mean of the other levels, float64 [levels, genes].
        effect_LG: Difference of the means, in standard deviations within labels.
        z_LG: Difference of the means, in standard errors: standard normal without an effect.
    """

    level_LG: Float64Matrix
    others_LG: Float64Matrix
    effect_LG: Float64Matrix
    z_LG: Float64Matrix


def level_contrasts(values_NG: sparse.csr_matrix, label_N: Int64Array, level_N: Int64Array, n_levels: int) -> Contrast:
    """Compare each level with the others within every label, and pool over labels.

    Args:
        values_NG: [n, genes], CSR.
        label_N: int64 [n].
        level_N: int64 [n], numbered from 0.
        n_levels: Number of levels.
    """
    shape = (n_levels, values_NG.shape[1])
    own_LG, others_LG, spread_LG = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    weight_L = np.zeros(n_levels)
    for cells in groups_of(label_N):
        rows_NG, level = values_NG[cells], level_N[cells]
        n_L = np.bincount(level, minlength=n_levels)
        compared = np.flatnonzero((n_L > 0) & (n_L < len(cells)))
        if not len(compared):
            continue
        sum_LG = level_sums(rows_NG, level, n_levels)
        total_G = sum_LG.sum(axis=0)
        square_G = np.asarray(rows_NG.multiply(rows_NG).sum(axis=0), np.float64).ravel()
        variance_G = np.maximum(0, square_G - total_G**2 / len(cells)) / (len(cells) - 1)
        n, rest = n_L[compared], len(cells) - n_L[compared]
        weight = n * rest / len(cells)
        own_LG[compared] += (weight / n)[:, None] * sum_LG[compared]
        others_LG[compared] += (weight / rest)[:, None] * (total_G - sum_LG[compared])
        spread_LG[compared] += weight[:, None] * variance_G
        weight_L[compared] += weight
    with np.errstate(divide="ignore", invalid="ignore"):
        own_LG, others_LG = own_LG / weight_L[:, None], others_LG / weight_L[:, None]
        deviation_LG = np.sqrt(spread_LG / weight_L[:, None])
        effect_LG = np.where(deviation_LG > 0, (own_LG - others_LG) / deviation_LG, 0.0)
    effect_LG[weight_L == 0] = np.nan
    return Contrast(own_LG, others_LG, effect_LG, effect_LG * np.sqrt(weight_L)[:, None])


def level_sums(values_NG: sparse.csr_matrix, level_N: Int64Array, n_levels: int) -> Float64Matrix:
    """Sums over the cells of each level, float64 [levels, genes]."""
    n = len(level_N)
    member_LN = sparse.csr_matrix((np.ones(n), (level_N, np.arange(n))), shape=(n_levels, n))
    return np.asarray((member_LN @ values_NG).toarray(), np.float64)
