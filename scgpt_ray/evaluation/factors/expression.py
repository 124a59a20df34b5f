"""How a factor changes the counts: a change of depth that all genes share (type I), or of single genes (type II).

Counts are summed over the cells of each replicate, label and level, and compared between levels with the replicate as
the unit: the depth over all labels at once, each gene in each label relative to the depth.

Shape suffixes: G genes, T tested genes, U units (a replicate at a level), K tests (a gene, in a label, of a level).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from scgpt_ray.evaluation.factors.contrast import SIGNIFICANCE, Contrast, contrasts
from scgpt_ray.evaluation.factors.pseudobulk import Pseudobulk, pseudobulks
from scgpt_ray.schema import Int64Array

LEAST_DEPTH_RATIO = 1.1
"""Ratio of depths from which an effect is called global; halving a tenth of the genes moves the depth by up to 1.05."""

DRIVEN_SHARE, DRIVEN_LEAST = 0.01, 5
"""Share of the tested genes, and number of genes, from which an effect is called gene-specific."""

_SHOWN = 20
_COUNTS_PER_UNIT = 10
_PSEUDOCOUNT = 0.5


@dataclass(frozen=True)
class DepthChange:
    """Depth of a level relative to the others of the same labels.

    Attributes:
        level: The level that differs most.
        ratio: Ratio of its geometric mean depth over replicates to that of the others.
        low: Lower end of the 95 % interval, simultaneous over levels; None if there are too few replicates, also below.
        high: Its upper end.
        p: P-value, times the number of levels compared (Bonferroni).
        threshold: Ratio from which a change would have been claimed.
    """

    level: str
    ratio: float
    low: float | None
    high: float | None
    p: float | None
    threshold: float | None

    @property
    def is_claimed(self) -> bool | None:
        """Whether the depth differs: type I; None if that cannot be determined."""
        if self.p is None:
            return None
        return self.p < SIGNIFICANCE and max(self.ratio, 1 / self.ratio) >= LEAST_DEPTH_RATIO


@dataclass(frozen=True)
class GeneChange:
    """Expression of a gene at a level relative to the others of the same label, at equal depth.

    Attributes:
        log2_fold: Log2 of the ratio of the geometric means over replicates.
        low: Lower end of the 95 % interval of this gene alone; None if there are too few replicates, also below.
        high: Its upper end.
        p: P-value of this gene alone.
        fdr: Smallest false discovery rate at which the gene is found (Benjamini and Hochberg).
    """

    gene: str
    label: str
    level: str
    log2_fold: float
    low: float | None
    high: float | None
    p: float | None
    fdr: float | None


@dataclass(frozen=True)
class GeneChanges:
    """Changes of single genes.

    Attributes:
        n_genes: Genes tested, those with ten counts per unit of some label on average.
        n_driven: Genes that differ in some label; None if there are too few replicates, also below.
        n_needed: Number from which the effect is called gene-specific.
        p: False discovery rate at which `n_needed` genes differ.
        threshold: Fold change that, in `n_needed` genes of median spread, would have been claimed.
        strongest: At most twenty: those that differ by size of the change, then others by p value.
    """

    n_genes: int
    n_driven: int | None
    n_needed: int
    p: float | None
    threshold: float | None
    strongest: tuple[GeneChange, ...]

    @property
    def is_claimed(self) -> bool | None:
        """Whether single genes differ: type II; None if that cannot be determined."""
        return None if self.p is None else self.p < SIGNIFICANCE


@dataclass(frozen=True)
class ExpressionShift:
    """Differences in the counts between the levels of a factor, within labels.

    Attributes:
        is_paired: Whether levels are compared within replicates, or between them.
        n_level: Replicates compared that have the level of `depth`.
        n_others: Replicates compared that have other levels; the same ones if paired.
        genes: Changes of genes; None if no gene has enough counts.
    """

    is_paired: bool
    n_level: int
    n_others: int
    n_labels: int
    depth: DepthChange
    genes: GeneChanges | None


def expression_shift(
    counts_NG: sparse.csr_matrix,
    genes_G: npt.NDArray[np.object_],
    label_N: Int64Array,
    level_N: Int64Array,
    replicate_N: Int64Array,
    labels: Sequence[str],
    levels: Sequence[str],
) -> ExpressionShift | None:
    """Compare the counts of a factor's levels within labels.

    Args:
        counts_NG: Counts [n, genes], CSR, whole numbers.
        genes_G: Name of each gene.
        label_N: int64 [n], numbered from 0.
        level_N: int64 [n], numbered from 0.
        replicate_N: int64 [n].
        labels: Name of each label.
        levels: Name of each level.

    Returns:
        None if no label has two levels with enough cells and counts (see `pseudobulks`).
    """
    bulks = pseudobulks(counts_NG, label_N, replicate_N, level_N)
    if not bulks:
        return None
    compared = _depth_contrasts(bulks)
    most = min(compared, key=lambda each: (each.p_F[0] if each.test else 0.0, -abs(each.estimate_F[0])))
    return ExpressionShift(
        is_paired=most.is_paired,
        n_level=most.n_level,
        n_others=most.n_others,
        n_labels=len(bulks),
        depth=_depth_change(most, len(compared), levels),
        genes=_gene_changes(bulks, genes_G, labels, levels),
    )


def _depth_contrasts(bulks: list[Pseudobulk]) -> list[Contrast]:
    """Contrasts of the log depth of units, relative to what their cells would have at the mean depths of the labels."""
    replicate, level = (np.concatenate([getattr(bulk, name) for bulk in bulks]) for name in ("replicate_U", "level_U"))
    expected = [bulk.n_cells_U * (bulk.size_U / bulk.n_cells_U).mean() for bulk in bulks]
    pairs_U2, unit = np.unique(np.stack([replicate, level], axis=1), axis=0, return_inverse=True)
    size_U, expected_U = (
        np.bincount(unit, np.concatenate(parts)) for parts in ([bulk.size_U for bulk in bulks], expected)
    )
    return contrasts(np.log(size_U / expected_U)[:, None], pairs_U2[:, 0], pairs_U2[:, 1])


def _depth_change(contrast: Contrast, n_compared: int, levels: Sequence[str]) -> DepthChange:
    log_ratio, level = float(contrast.estimate_F[0]), levels[contrast.level]
    if contrast.test is None:
        return DepthChange(level, float(np.exp(log_ratio)), None, None, None, None)
    half_width = float(contrast.half_width_F(SIGNIFICANCE / n_compared)[0])
    low, ratio, high = np.exp([log_ratio - half_width, log_ratio, log_ratio + half_width]).tolist()
    p = min(1.0, float(contrast.p_F[0]) * n_compared)
    return DepthChange(level, ratio, low, high, p, max(float(np.exp(half_width)), LEAST_DEPTH_RATIO))


def _gene_changes(
    bulks: list[Pseudobulk], genes_G: npt.NDArray[np.object_], labels: Sequence[str], levels: Sequence[str]
) -> GeneChanges | None:
    compared = [(bulk.label, *each) for bulk in bulks for each in _gene_contrasts(bulk)]
    compared = [each for each in compared if each[2].test is not None] or compared
    if not compared:
        return None
    gene_K = np.concatenate([genes_T for _, genes_T, _ in compared])
    source_K = np.repeat(np.arange(len(compared)), [len(genes_T) for _, genes_T, _ in compared])
    fold_K = np.concatenate([contrast.estimate_F for *_, contrast in compared])
    n_genes = len(np.unique(gene_K))
    n_needed = max(DRIVEN_LEAST, int(np.ceil(DRIVEN_SHARE * n_genes)))

    def change(test: int, *figures: float | None) -> GeneChange:
        label, _, contrast = compared[source_K[test]]
        gene = str(genes_G[gene_K[test]])
        return GeneChange(gene, labels[label], levels[contrast.level], float(fold_K[test]), *figures)

    if compared[0][2].test is None:
        shown = np.argsort(-np.abs(fold_K), kind="stable")[:_SHOWN]
        return GeneChanges(n_genes, None, n_needed, None, None, tuple(change(k, None, None, None, None) for k in shown))
    p_K = np.concatenate([contrast.p_F for *_, contrast in compared])
    fdr_K = stats.false_discovery_control(p_K)
    fdr_G = np.ones(len(genes_G))
    np.minimum.at(fdr_G, gene_K, fdr_K)
    half_K, rate = _half_widths(compared, SIGNIFICANCE), SIGNIFICANCE * n_needed / len(p_K)
    shown = np.lexsort((-np.abs(fold_K), np.where(fdr_K < SIGNIFICANCE, 0, p_K)))[:_SHOWN]
    ends_K2 = np.stack([fold_K - half_K, fold_K + half_K], axis=1)
    return GeneChanges(
        n_genes=n_genes,
        n_driven=int((fdr_G < SIGNIFICANCE).sum()),
        n_needed=n_needed,
        p=float(np.partition(fdr_G, n_needed - 1)[n_needed - 1]) if n_needed <= len(fdr_G) else 1.0,
        threshold=float(2 ** np.median(_half_widths(compared, min(rate, SIGNIFICANCE)))),
        strongest=tuple(change(k, *ends_K2[k].tolist(), float(p_K[k]), float(fdr_K[k])) for k in shown),
    )


def _gene_contrasts(bulk: Pseudobulk) -> list[tuple[Int64Array, Contrast]]:
    """Genes with enough counts, int64 [t], and each level's contrast of their log2 expression at equal depth.

    The pseudocount is in proportion to the depth, so that a change of depth changes no gene.
    """
    mean_G = np.asarray(bulk.counts_UG.mean(axis=0)).ravel()
    genes_T = np.flatnonzero(mean_G >= _COUNTS_PER_UNIT).astype(np.int64)
    if not len(genes_T):
        return []
    scale_U1 = (bulk.size_U / bulk.size_U.mean())[:, None]
    values_UT = np.log2(bulk.counts_UG[:, genes_T].toarray() / scale_U1 + _PSEUDOCOUNT)
    return [(genes_T, contrast) for contrast in contrasts(values_UT, bulk.replicate_U, bulk.level_U)]


def _half_widths(compared: Sequence[tuple[int, Int64Array, Contrast]], rate: float) -> npt.NDArray[np.float64]:
    return np.concatenate([contrast.half_width_F(rate) for *_, contrast in compared])
