"""Effects planted in counts: depth and single genes are told apart."""

import numpy as np
import pytest
from scipy import sparse, stats

from scgpt_ray.evaluation.factors.contrast import level_contrasts
from scgpt_ray.evaluation.factors.depth import matched_depth, robust_depth, thinned
from scgpt_ray.evaluation.factors.expression import ExpressionShift, expression_shift

GENES = np.array([f"GENE{number}" for number in range(150)], object)
LEVELS = ("a", "b")


def made_up(seed=0, n=240):
    """Two labels, cells of different depth, halves `a` and `b` that differ in nothing."""
    random = np.random.default_rng(seed)
    label_N, level_N = np.arange(n) % 2, np.arange(n) // 2 % 2
    rates = random.gamma(1.0, 1.5, (2, len(GENES)))[label_N] * random.lognormal(0, 0.3, (n, 1))
    return random.poisson(rates), label_N, level_N


def shift_of(counts, label_N, level_N, levels=LEVELS):
    return expression_shift(sparse.csr_matrix(counts), GENES, label_N, level_N, levels, seed=0)


def test_equal_halves():
    shift = shift_of(*made_up())
    assert (shift.is_global, shift.is_gene_specific, shift.n_driven) == (False, False, 0)
    assert (shift.n_cells, shift.n_labels, shift.n_tested) == (240, 2, len(GENES))


def test_thinning_is_global():
    counts, label_N, level_N = made_up()
    counts = np.random.default_rng(1).binomial(counts, np.where(level_N == 1, 0.5, 1.0)[:, None])
    shift = shift_of(counts, label_N, level_N)
    assert (shift.is_global, shift.is_gene_specific, shift.n_driven) == (True, False, 0)
    assert shift.depth_fold == pytest.approx(0.5, rel=0.1)
    assert shift.depth_effect < -1


@pytest.mark.parametrize("factor", [0, 4])
def test_some_genes_are_not(factor):
    counts, label_N, level_N = made_up(n=600)
    changed = np.ix_(level_N == 1, np.arange(20))
    counts[changed] *= factor
    shift = shift_of(counts, label_N, level_N)
    assert (shift.is_global, shift.is_gene_specific) == (False, True)
    names = {gene.gene for gene in shift.driven}
    assert names <= set(GENES[:20])
    assert len(names) > 10, "zeros stay zeros, so genes of few counts hardly change"
    for gene in shift.driven:
        assert gene.level == "b"
        assert (gene.effect > 0) == (gene.log2_fold > 0) == (factor == 4)
        assert gene.fdr < 0.01


def test_the_fold_of_a_gene():
    counts, label_N, level_N = made_up(n=2000)
    counts[np.ix_(level_N == 1, [7])] *= 4
    (gene,) = shift_of(counts, label_N, level_N).driven
    assert gene.gene == "GENE7"
    assert gene.log2_fold == pytest.approx(2, abs=0.15)


def test_both_at_once():
    counts, label_N, level_N = made_up()
    counts[np.ix_(level_N == 1, np.arange(20))] *= 4
    counts = np.random.default_rng(1).binomial(counts, np.where(level_N == 1, 0.5, 1.0)[:, None])
    shift = shift_of(counts, label_N, level_N)
    assert (shift.is_global, shift.is_gene_specific) == (True, True)


def test_a_difference_between_labels_is_no_effect():
    """Level b has mostly cells of one label, whose genes and depth differ."""
    counts, label_N, _ = made_up(n=600)
    counts[label_N == 1] *= 2
    level_N = (np.random.default_rng(2).random(600) < np.where(label_N == 1, 0.8, 0.2)).astype(np.int64)
    shift = shift_of(counts, label_N, level_N)
    assert (shift.is_global, shift.n_driven) == (False, 0)


def test_one_level_of_three():
    counts, label_N, _ = made_up(n=360)
    level_N = np.arange(360) // 2 % 3
    counts[np.ix_(level_N == 2, np.arange(20))] *= 4
    shift = shift_of(counts, label_N, level_N, ("a", "b", "c"))
    assert shift.is_gene_specific
    assert shift.driven[0].level == "c"
    assert all((gene.effect > 0) == (gene.level == "c") for gene in shift.driven)


@pytest.mark.parametrize(("n_levels", "n_compared"), [(2, 1), (3, 3)])
def test_the_depth_of_the_most_different_of_several_levels(n_levels, n_compared):
    """Its p value is that of the effect, times the number of comparisons; two levels mirror each other."""
    counts, label_N, _ = made_up(n=360)
    level_N = np.arange(360) // 2 % n_levels
    counts = np.random.default_rng(1).binomial(counts, np.where(level_N == 1, 0.9, 1.0)[:, None])
    shift = shift_of(counts, label_N, level_N, ("a", "b", "c")[:n_levels])
    assert shift.level == "b"
    own, others = 180 / n_levels, 180 - 180 / n_levels
    z = abs(shift.depth_effect) * np.sqrt(2 * own * others / 180)  # of two labels with 180 cells each
    assert 2 < z < 6, "neither sure nor by chance"
    assert shift.depth_p == pytest.approx(n_compared * 2 * stats.norm.sf(z))


@pytest.mark.parametrize(
    ("depth_fold", "depth_p", "is_global"),
    [(1.21, 0.009, True), (1 / 1.21, 0.009, True), (1.21, 0.011, False), (1.19, 0.009, False), (1 / 1.19, 0.0, False)],
)
def test_depth_changes_where_it_is_both_much_and_no_chance(depth_fold, depth_p, is_global):
    shift = ExpressionShift(60, 1, "b", depth_fold, 1.0, depth_p, n_tested=0, n_driven=0, driven=())
    assert shift.is_global is is_global


def test_nothing_to_compare():
    counts, label_N, level_N = made_up()
    assert shift_of(counts, label_N, label_N) is None
    assert shift_of(counts[:60], label_N[:60], level_N[:60]) is None, "15 cells of each"
    assert shift_of(counts * 0 + 1 * (np.arange(150) < 3), label_N, level_N) is None, "three genes tell no depth"


def test_depth_is_not_moved_by_a_few_strong_genes():
    counts, label_N, level_N = made_up()
    counts[np.ix_(level_N == 1, np.arange(30))] *= 10
    plain = counts.sum(axis=1)
    depth_N = robust_depth(sparse.csr_matrix(counts), label_N, level_N)
    assert plain[level_N == 1].mean() > 2 * plain[level_N == 0].mean()
    assert depth_N[level_N == 1].mean() == pytest.approx(depth_N[level_N == 0].mean(), rel=0.12)


def test_rare_levels_are_left_out():
    counts, label_N, level_N = made_up()
    level_N = np.where(np.arange(240) < 20, 2, level_N)
    left_out = np.isnan(robust_depth(sparse.csr_matrix(counts), label_N, level_N))
    np.testing.assert_array_equal(left_out, level_N == 2)


def test_depths_are_matched_by_quantile():
    depth_N = np.array([1.0, 2, 3, 4, 10, 1, 8, 2])
    label_N, level_N = np.zeros(8, int), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert matched_depth(depth_N, label_N, level_N).tolist() == [1, 2, 3, 4, 4, 1, 3, 2]
    assert matched_depth(depth_N, level_N, level_N).tolist() == depth_N.tolist(), "labels do not mix"


def test_thinning():
    counts = sparse.csr_matrix(np.array([[100, 0, 50], [0, 0, 0], [80, 7, 0]]))
    before = counts.toarray()
    fewer = thinned(counts, np.array([1.0, 0.5, 0.25]), seed=0).toarray()
    np.testing.assert_array_equal(fewer[:2], before[:2])
    assert (fewer <= before).all()
    assert 8 < fewer[2, 0] < 34
    np.testing.assert_array_equal(counts.toarray(), before)
    assert thinned(counts, np.zeros(3), seed=0).nnz == 0


def test_contrasts_by_hand():
    values = np.array([[1.0, 0], [3, 0], [2, 0], [6, 0], [9, 0]])
    label_N, level_N = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 1, 1, 1])
    contrast = level_contrasts(sparse.csr_matrix(values), label_N, level_N, 3)
    spread = values[:4, 0].std(ddof=1)
    assert contrast.level_LG[:2, 0].tolist() == [2, 4], "label 1 has one level alone"
    assert contrast.others_LG[:2, 0].tolist() == [4, 2]
    assert contrast.effect_LG[:, 0] == pytest.approx([-2 / spread, 2 / spread, np.nan], nan_ok=True)
    assert contrast.z_LG[0, 0] == pytest.approx(-2 / (spread * np.sqrt(1 / 2 + 1 / 2)))
    assert contrast.effect_LG[:2, 1].tolist() == [0, 0]


def test_scores_are_normal_where_nothing_differs():
    random = np.random.default_rng(5)
    values = sparse.csr_matrix(random.poisson(1.0, (400, 2000)).astype(float))
    z = level_contrasts(values, np.arange(400) % 3, random.integers(0, 2, 400), 2).z_LG[1]
    assert abs(z.mean()) < 0.1
    assert z.std() == pytest.approx(1, abs=0.06)
