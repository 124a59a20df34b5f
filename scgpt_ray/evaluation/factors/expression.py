"""How a factor changes the counts: a change of depth that all genes share, or changes of single genes.

Each level is compared with the others within labels, pooled over labels. Before genes are compared, cells are thinned
binomially to the same distribution of depths in all levels of a label. Thinned counts are distributed like counts at
lower depth, so that a change of depth alone changes no gene.

Shape suffixes: N cells, G genes, T tested genes, L levels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from scgpt_ray.evaluation.factors.contrast import level_contrasts
from scgpt_ray.evaluation.factors.depth import matched_depth, robust_depth, thinned
from scgpt_ray.evaluation.neighbors import groups_of
from scgpt_ray.schema import Int64Array

GLOBAL_FOLD = 1.2
"""Change of depth from which an effect is called global."""

GENE_EFFECT = 0.2
"""Standardised difference (Cohen's d) from which a gene counts as driven: a small effect, by Cohen's convention."""

DRIVEN_SHARE, DRIVEN_LEAST = 0.01, 5
"""Share of the tested genes, and number of genes, from which an effect is called gene-specific."""

SIGNIFICANCE = 0.01
"""Significance level of the change of depth, and false discovery rate of the genes."""

_SHOWN = 20
_DETECTED_SHARE, _DETECTED_CELLS = 0.05, 10
_COUNTS_PER_CELL = 1e4
_PSEUDOCOUNT = 0.1


@dataclass(frozen=True)
class DrivenGene:
    """A gene that differs between a level and the others of the same label, at equal depth.

    Attributes:
        gene: Name of the gene.
        level: The level.
        effect: Difference of mean log1p expression in standard deviations within labels; > 0 if higher in the level.
        log2_fold: Log2 of the ratio of mean expression.
        fdr: Smallest false discovery rate at which the gene is found (Benjamini and Hochberg).
    """

    gene: str
    level: str
    effect: float
    log2_fold: float
    fdr: float


@dataclass(frozen=True)
class ExpressionShift:
    """Differences in the counts between the levels of a factor, within labels.

    Attributes:
        n_cells: Number of cells compared.
        n_labels: Number of their labels.
        level: The level whose depth differs most from the others of its labels.
        depth_fold: Ratio of its geometric mean depth to that of the others.
        depth_effect: Difference of log depth in standard deviations within labels.
        depth_p: P-value of that difference, times the number of levels compared (Bonferroni).
        n_tested: Number of genes tested, those detected in enough cells.
        n_driven: Number of genes that differ.
        driven: The strongest of them by absolute effect, at most twenty.
    """

    n_cells: int
    n_labels: int
    level: str
    depth_fold: float
    depth_effect: float
    depth_p: float
    n_tested: int
    n_driven: int
    driven: tuple[DrivenGene, ...]

    @property
    def is_global(self) -> bool:
        """Whether the depth differs: type I."""
        return bool(abs(np.log(self.depth_fold)) >= np.log(GLOBAL_FOLD)) and self.depth_p < SIGNIFICANCE

    @property
    def is_gene_specific(self) -> bool:
        """Whether single genes differ: type II."""
        return self.n_driven >= max(DRIVEN_LEAST, DRIVEN_SHARE * self.n_tested)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values for JSON."""
        return {**vars(self), "driven": [vars(gene) for gene in self.driven]}


def expression_shift(
    counts_NG: sparse.csr_matrix,
    genes_G: npt.NDArray[np.object_],
    label_N: Int64Array,
    level_N: Int64Array,
    levels: tuple[str, ...],
    *,
    seed: int,
) -> ExpressionShift | None:
    """Compare the counts of a factor's levels within labels.

    Args:
        counts_NG: Counts [n, genes], CSR, whole numbers.
        genes_G: Name of each gene.
        label_N: int64 [n].
        level_N: int64 [n], numbered from 0.
        levels: Name of each level.
        seed: Seed of the thinning.

    Returns:
        None if no label has two levels with enough cells and counts (see `robust_depth`).
    """
    depth_N = robust_depth(counts_NG, label_N, level_N)
    kept = np.flatnonzero(np.isfinite(depth_N))
    if not len(kept):
        return None
    counts_NG, label_N, level_N, depth_N = counts_NG[kept], label_N[kept], level_N[kept], depth_N[kept]
    depth = level_contrasts(sparse.csr_matrix(np.log(depth_N)[:, None]), label_N, level_N, len(levels))
    effect_L, z_L = depth.effect_LG[:, 0], depth.z_LG[:, 0]
    compared = np.flatnonzero(np.isfinite(z_L))
    if len(compared) == 2:  # noqa: PLR2004 - of two levels, one contrast is the negative of the other
        compared = compared[1:]
    most = int(compared[np.argmax(np.abs(effect_L[compared]))])
    n_tested, driven = _driven_genes(counts_NG, genes_G, depth_N, label_N, level_N, levels, compared, seed)
    return ExpressionShift(
        n_cells=len(kept),
        n_labels=len(groups_of(label_N)),
        level=levels[most],
        depth_fold=float(np.exp(depth.level_LG[most, 0] - depth.others_LG[most, 0])),
        depth_effect=float(effect_L[most]),
        depth_p=float(min(1.0, 2 * stats.norm.sf(abs(z_L[most])) * len(compared))),
        n_tested=n_tested,
        n_driven=len({gene.gene for gene in driven}),
        driven=tuple(driven[:_SHOWN]),
    )


def _driven_genes(
    counts_NG: sparse.csr_matrix,
    genes_G: npt.NDArray[np.object_],
    depth_N: npt.NDArray[np.float64],
    label_N: Int64Array,
    level_N: Int64Array,
    levels: tuple[str, ...],
    compared: npt.NDArray[np.integer],
    seed: int,
) -> tuple[int, list[DrivenGene]]:
    """Number of genes tested, and the genes that differ at equal depth, strongest first."""
    target_N = matched_depth(depth_N, label_N, level_N)
    fewer_NG = thinned(counts_NG, target_N / depth_N, seed=seed)
    tested_T = _detected(fewer_NG, label_N)
    if not len(tested_T):
        return 0, []
    scaled_NT = sparse.csr_matrix(sparse.diags(_COUNTS_PER_CELL / target_N) @ fewer_NG[:, tested_T])
    logs = level_contrasts(scaled_NT.log1p(), label_N, level_N, len(levels))
    means = level_contrasts(scaled_NT, label_N, level_N, len(levels))
    effect, z = logs.effect_LG[compared], logs.z_LG[compared]
    fold = np.log2((means.level_LG[compared] + _PSEUDOCOUNT) / (means.others_LG[compared] + _PSEUDOCOUNT))
    fdr = stats.false_discovery_control(2 * stats.norm.sf(np.abs(z)), axis=None).reshape(z.shape)
    found = np.argwhere((fdr < SIGNIFICANCE) & (np.abs(effect) >= GENE_EFFECT))
    driven = [
        DrivenGene(
            gene=str(genes_G[tested_T[gene]]),
            level=levels[compared[row]],
            effect=float(effect[row, gene]),
            log2_fold=float(fold[row, gene]),
            fdr=float(fdr[row, gene]),
        )
        for row, gene in found
    ]
    return len(tested_T), sorted(driven, key=lambda gene: (-abs(gene.effect), gene.gene, gene.level))


def _detected(counts_NG: sparse.csr_matrix, label_N: Int64Array) -> Int64Array:
    """Genes detected in at least ten cells, and in at least 5 % of the cells of some label."""
    detected = np.zeros(counts_NG.shape[1], bool)
    for cells in groups_of(label_N):
        detected |= counts_NG[cells].getnnz(axis=0) >= _DETECTED_SHARE * len(cells)
    return np.flatnonzero(detected & (counts_NG.getnnz(axis=0) >= _DETECTED_CELLS)).astype(np.int64)
