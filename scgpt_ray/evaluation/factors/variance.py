"""How much of an embedding's variance a factor explains in addition to the label.

A multivariate linear model is fitted in steps: label, then factor, then their interaction. The share of a step is the
increase of the explained sum of squares over all dimensions (sequential, type I), less the increase by as many columns
of noise (Ezekiel's adjustment), so that a factor without effect has a share near 0 whatever its number of levels.

Shape suffixes: N cells, D dimensions, P columns of a design.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.evaluation.neighbors import between_groups
from scgpt_ray.evaluation.sample import strata_of
from scgpt_ray.schema import Float32Matrix, Int64Array

_SINGULAR = 1e-9


@dataclass(frozen=True)
class VarianceShares:
    """Shares of the total variance, adjusted for the number of columns of each step; 0 to 1.

    Attributes:
        label: Share of the label.
        factor: Share that the factor adds.
        interaction: Share added by effects of the factor that differ between labels.
        partial: `factor` relative to the variance that the label leaves unexplained: the adjusted partial R2.
    """

    label: float
    factor: float
    interaction: float
    partial: float


def explained_variance(
    vectors_ND: Float32Matrix, label_N: Int64Array, level_N: Int64Array, number_N: npt.NDArray[np.float64] | None = None
) -> VarianceShares:
    """Split the variance of vectors between label, factor and their interaction.

    Args:
        vectors_ND: float32 [n, d].
        label_N: int64 [n], numbered from 0.
        level_N: int64 [n], levels of the factor, numbered from 0.
        number_N: float64 [n], not constant, of a numeric factor: its linear effect is used instead of the levels.
    """
    centred_ND = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0, dtype=np.float64)
    total = float((centred_ND**2).sum())
    labels_NP = _one_hot(label_N)
    if number_N is None:
        additive_NP = sparse.hstack([labels_NP, _one_hot(level_N)], format="csr")
        full = _fit_groups(strata_of(label_N, level_N), centred_ND)
    else:
        scaled_N1 = ((number_N - number_N.mean()) / number_N.std())[:, None]
        additive_NP = sparse.hstack([labels_NP, sparse.csr_matrix(scaled_N1)], format="csr")
        full = _fit(sparse.hstack([labels_NP, labels_NP.multiply(scaled_N1)], format="csr"), centred_ND)
    steps = [(0.0, 1), _fit_groups(label_N, centred_ND), _fit(additive_NP, centred_ND), full]
    noise = (total - full[0]) / max(1, len(vectors_ND) - full[1])
    label, factor, interaction = (
        max(0.0, after - before - noise * (rank - rank_before)) / total if total else 0.0
        for (before, rank_before), (after, rank) in pairwise(steps)
    )
    return VarianceShares(label, factor, interaction, partial=min(1.0, factor / (1 - label)) if label < 1 else 0.0)


def _one_hot(codes_N: Int64Array) -> sparse.csr_matrix:
    n = len(codes_N)
    return sparse.csr_matrix((np.ones(n), codes_N, np.arange(n + 1)))


def _fit_groups(codes_N: Int64Array, centred_ND: npt.NDArray[np.float64]) -> tuple[float, int]:
    """Sum of squares that group means explain, and the number of groups."""
    return between_groups(centred_ND, codes_N), len(np.unique(codes_N))


def _fit(design_NP: sparse.csr_matrix, centred_ND: npt.NDArray[np.float64]) -> tuple[float, int]:
    """Sum of squares that a design explains, and its rank."""
    gram_PP = (design_NP.T @ design_NP).toarray()
    cross_PD = design_NP.T @ centred_ND
    values, axes_PP = np.linalg.eigh(gram_PP)
    kept = values > _SINGULAR * values[-1]
    return float((((axes_PP[:, kept].T @ cross_PD) ** 2) / values[kept, None]).sum()), int(kept.sum())
