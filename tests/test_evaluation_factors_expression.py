"""Effects planted in synthetic counts of donors: depth and single genes are distinguished, with donors as the unit."""

import numpy as np
import pytest
from scipy import sparse, stats

from scgpt_ray.evaluation.factors import expression
from scgpt_ray.evaluation.factors.expression import DepthChange, GeneChanges, expression_shift
from scgpt_ray.evaluation.factors.pseudobulk import depths, pseudobulks

GENES = np.array([f"GENE{number}" for number in range(150)], object)
LABELS, LEVELS = ("B", "T"), ("a", "b")
DESIGNS = {"between": 8, "within": 4}


def cells(design="between", n=1600, seed=0, donor_spread=0.1):
    """Counts of two labels and of donors that differ in depth and genes; levels that differ in nothing."""
    random, n_donors = np.random.default_rng(seed), DESIGNS[design]
    label_N, donor_N = np.arange(n) % 2, np.arange(n) // 2 % n_donors
    level_N = donor_N % 2 if design == "between" else np.arange(n) // (2 * n_donors) % 2
    of_donor = random.lognormal(0, donor_spread, (n_donors, len(GENES))) * random.lognormal(0, 0.04, (n_donors, 1))
    rates = random.gamma(2.0, 1.0, (2, len(GENES)))[label_N] * of_donor[donor_N] * random.lognormal(0, 0.3, (n, 1))
    return random.poisson(rates), label_N, level_N, donor_N


def thin(counts, level_N, share):
    return np.random.default_rng(1).binomial(counts, np.where(level_N == 1, share, 1.0)[:, None])


def shift_of(counts, label_N, level_N, donor_N, levels=LEVELS):
    return expression_shift(sparse.csr_matrix(counts), GENES, label_N, level_N, donor_N, LABELS, levels)


@pytest.mark.parametrize("design", DESIGNS)
def test_nothing_planted(design):
    shift = shift_of(*cells(design))
    assert (shift.is_paired, shift.n_level, shift.n_others, shift.n_labels) == (design == "within", 4, 4, 2)
    assert (shift.depth.is_claimed, shift.genes.is_claimed) == (False, False)
    assert shift.genes.n_driven <= 1
    assert shift.genes.n_genes == len(GENES)
    assert shift.depth.low < 1 < shift.depth.high
    assert shift.depth.threshold >= 1.1


@pytest.mark.parametrize("design", DESIGNS)
def test_a_change_of_depth_is_global(design):
    counts, label_N, level_N, donor_N = cells(design)
    shift = shift_of(thin(counts, level_N, 0.6), label_N, level_N, donor_N)
    assert (shift.depth.is_claimed, shift.genes.is_claimed) == (True, False)
    assert shift.depth.ratio == pytest.approx(0.6, rel=0.07)
    assert shift.depth.low < 0.6 < shift.depth.high < 1


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("fold", [0.5, 3])
def test_changes_of_some_genes_are_not(design, fold):
    counts, label_N, level_N, donor_N = cells(design)
    changed = np.ix_(level_N == 1, np.arange(15))
    counts[changed] = np.random.default_rng(1).poisson(counts[changed] * fold)
    shift = shift_of(counts, label_N, level_N, donor_N)
    assert (shift.depth.is_claimed, shift.genes.is_claimed) == (False, True)
    assert shift.genes.n_driven >= 10
    found = [gene for gene in shift.genes.strongest if gene.fdr < 0.05]
    assert len({gene.gene for gene in found} - set(GENES[:15])) <= 1, "a false discovery rate of 5 %"
    assert {gene.label for gene in found} == set(LABELS)
    for gene in found:
        assert gene.level == "b"
        assert gene.low < gene.log2_fold < gene.high
    assert np.median([gene.log2_fold for gene in found]) == pytest.approx(np.log2(fold), abs=0.2)


def test_both_at_once():
    counts, label_N, level_N, donor_N = cells()
    counts[np.ix_(level_N == 1, np.arange(20))] *= 4
    shift = shift_of(thin(counts, level_N, 0.5), label_N, level_N, donor_N)
    assert (shift.depth.is_claimed, shift.genes.is_claimed) == (True, True)


def test_cells_do_not_count_as_replicates():
    """Donors that differ much, in arbitrary halves: whatever the number of cells, nothing is claimed."""
    for seed in range(4):
        shift = shift_of(*cells(n=3200, seed=seed, donor_spread=0.5))
        assert (shift.depth.is_claimed, shift.genes.is_claimed) == (False, False)


def test_a_difference_between_labels_is_no_effect():
    """Level b has mostly cells of one label, whose genes and depth differ."""
    counts, label_N, level_N, donor_N = cells(n=3200)
    counts[label_N == 1] *= 2
    kept = np.random.default_rng(2).random(3200) < np.where(label_N == level_N, 0.8, 0.2)
    shift = shift_of(counts[kept], label_N[kept], level_N[kept], donor_N[kept])
    assert (shift.depth.is_claimed, shift.genes.is_claimed) == (False, False)
    assert shift.depth.ratio == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("n_donors", [1, 2])
def test_two_replicates_are_too_few(n_donors):
    """The estimates are there, without intervals and p values."""
    counts, label_N, level_N, _ = cells("within")
    counts[np.ix_(level_N == 1, [3, 4])] *= 8
    shift = shift_of(thin(counts, level_N, 0.5), label_N, level_N, np.arange(1600) // 2 % n_donors)
    depth, genes = shift.depth, shift.genes
    assert (depth.is_claimed, genes.is_claimed) == (None, None)
    assert (depth.low, depth.high, depth.p, depth.threshold, genes.p, genes.threshold, genes.n_driven) == (None,) * 7
    assert depth.ratio == pytest.approx(0.5, rel=0.1)
    assert {gene.gene for gene in genes.strongest[:4]} == {"GENE3", "GENE4"}
    assert {gene.fdr for gene in genes.strongest} == {None}


def test_the_depth_of_the_most_different_of_several_levels():
    """Its p value is times the number of levels, its interval of as much more confidence."""
    counts, label_N, _, _ = cells(n=2400)
    donor_N = np.arange(2400) // 2 % 12
    level_N = donor_N % 3
    shift = shift_of(thin(counts, level_N, 0.8), label_N, level_N, donor_N, ("a", "b", "c"))
    depth = shift.depth
    assert (depth.level, shift.n_level, shift.n_others) == ("b", 4, 8)
    width = np.log(depth.high / depth.low) / 2
    error = width / stats.t.isf(0.05 / 3 / 2, 10)
    assert depth.p == pytest.approx(3 * 2 * stats.t.sf(abs(np.log(depth.ratio)) / error, 10))
    assert depth.p < 1e-3


@pytest.mark.parametrize(
    ("ratio", "p", "is_claimed"),
    [(1.11, 0.049, True), (1 / 1.11, 0.049, True), (1.11, 0.051, False), (1.09, 0.0, False), (1 / 1.09, 0.0, False)],
)
def test_depth_changes_where_it_is_both_much_and_no_chance(ratio, p, is_claimed):
    assert DepthChange("b", ratio, 1.0, 2.0, p, 1.2).is_claimed is is_claimed


@pytest.mark.parametrize(("p", "is_claimed"), [(0.049, True), (0.051, False), (None, None)])
def test_genes_are_claimed_where_enough_of_them_differ(p, is_claimed):
    assert GeneChanges(1000, 9, 10, p, 2.0, ()).is_claimed is is_claimed


def test_a_few_genes_are_too_few():
    counts, label_N, level_N, donor_N = cells("within")
    for n, is_claimed in ((3, False), (6, True)):
        changed = counts.copy()
        changed[np.ix_(level_N == 1, np.arange(n))] *= 10
        genes = shift_of(changed, label_N, level_N, donor_N).genes
        assert (genes.n_needed, genes.is_claimed) == (5, is_claimed)
        assert n <= genes.n_driven <= n + 1, "a false discovery rate of 5 %"
        assert set(GENES[:n]) <= {gene.gene for gene in genes.strongest if gene.fdr < 0.05}


def test_the_threshold_of_genes_separates_what_is_found():
    """Half the genes have less spread than the median: enough of them are found above the threshold, few below."""
    counts, label_N, level_N, donor_N = cells()
    threshold = shift_of(counts, label_N, level_N, donor_N).genes.threshold
    assert threshold > 1.2
    for fold, is_claimed in ((1 + (threshold - 1) / 4, False), (threshold * 1.1, True)):
        changed = np.ix_(level_N == 1, np.arange(15))
        more = counts.copy()
        more[changed] = np.random.default_rng(1).poisson(counts[changed] * fold)
        assert shift_of(more, label_N, level_N, donor_N).genes.is_claimed is is_claimed


def test_the_threshold_of_genes_by_hand(monkeypatch):
    """The median interval, widened from 95 % to the rate at which the fifth of all tests is found; 6 degrees."""
    monkeypatch.setattr(expression, "_SHOWN", 1000)
    genes = shift_of(*cells()).genes
    n_tests = len(genes.strongest)
    assert 290 < n_tests <= 300
    errors = [(gene.high - gene.low) / 2 / stats.t.isf(0.025, 6) for gene in genes.strongest]
    assert genes.threshold == pytest.approx(2 ** (np.median(errors) * stats.t.isf(0.05 * 5 / n_tests / 2, 6)))


def test_nothing_to_compare():
    counts, label_N, level_N, donor_N = cells()
    assert shift_of(counts, label_N, label_N, donor_N) is None
    assert shift_of(counts[:100], label_N[:100], level_N[:100], donor_N[:100]) is None, "six cells of each"
    assert shift_of(counts * 0 + 1 * (np.arange(150) < 3), label_N, level_N, donor_N) is None, "three genes, no depth"


def test_units_by_hand():
    """Units of ten cells are kept and of nine are not; sums are of one label, replicate and level."""
    label_N, donor_N = np.repeat([0, 1], [40, 10]), np.repeat([5, 6, 7, 8, 5], [10, 10, 11, 9, 10])
    level_N = np.repeat([0, 1, 0, 1, 0], [10, 10, 11, 9, 10])
    counts = np.random.default_rng(0).poisson(5, (50, 40))
    shuffled = np.random.default_rng(1).permutation(50)
    (bulk,) = pseudobulks(sparse.csr_matrix(counts)[shuffled], label_N[shuffled], donor_N[shuffled], level_N[shuffled])
    assert (bulk.label, bulk.replicate_U.tolist(), bulk.level_U.tolist()) == (0, [5, 6, 7], [0, 1, 0])
    assert bulk.n_cells_U.tolist() == [10, 10, 11]
    sums = [counts[:10].sum(axis=0), counts[10:20].sum(axis=0), counts[20:31].sum(axis=0)]
    np.testing.assert_array_equal(bulk.counts_UG.toarray(), sums)


def test_depth_is_not_moved_by_a_few_strong_genes():
    counts = np.full((4, 40), 100)
    counts[2] *= 3
    counts[3, :10] = 5000
    depth_U = depths(sparse.csr_matrix(counts))
    assert depth_U[2] == pytest.approx(3 * depth_U[0])
    assert depth_U[3] == pytest.approx(depth_U[0])
    assert np.isnan(depths(sparse.csr_matrix(counts[:, :29]))).all(), "30 genes with 20 counts are needed"
    assert np.isnan(depths(sparse.csr_matrix(counts[:3] // 6))).tolist() == [True, True, False]
