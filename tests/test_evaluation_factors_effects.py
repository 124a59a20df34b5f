"""Factors in embeddings and counts: cases known beforehand, and effects planted in real cells."""

import json

import numpy as np
import pytest
from scipy import sparse

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.components import hvg_pca
from scgpt_ray.evaluation.factors.effects import DEPTH, Factor, FactorInEmbedding, explain_factors
from scgpt_ray.evaluation.factors.probe import Probe, neighbour_purity, probe_levels, probe_number
from scgpt_ray.evaluation.factors.variance import VarianceShares, explained_variance
from scgpt_ray.evaluation.factors.verdict import effect_dict, verdict

N = 300
LABEL = np.arange(N) % 3
LEVEL = np.arange(N) // 3 % 2


@pytest.fixture
def random():
    """The same numbers in every test, whichever ran before it."""
    return np.random.default_rng(0)


def vectors(label=1.0, level=0.0, crossed=0.0, noise=0.3, d=6):
    """Labels, levels and their combination each along an axis of their own."""
    signs = 2 * LEVEL - 1
    axes = np.eye(d)
    means = label * axes[LABEL] + level * signs[:, None] * axes[3] + crossed * (signs * (LABEL - 1))[:, None] * axes[4]
    return (means + noise * np.random.default_rng(1).standard_normal((N, d))).astype(np.float32)


def test_variance_by_hand():
    """Four points of a balanced design: label along x (2 apart), factor along y (1 apart), no noise."""
    corners = np.array([[0, 0], [0, 1], [2, 0], [2, 1]] * 5, np.float32)
    label, level = np.array([0, 0, 1, 1] * 5), np.array([0, 1, 0, 1] * 5)
    shares = explained_variance(corners, label, level)
    assert (shares.label, shares.factor, shares.interaction) == pytest.approx((0.8, 0.2, 0.0))
    assert shares.partial == pytest.approx(1)
    crossed = explained_variance(((label + level) % 2)[:, None].astype(np.float32), label, level)
    assert (crossed.label, crossed.factor, crossed.interaction) == pytest.approx((0, 0, 1), abs=1e-9)


def test_variance_of_noise_is_near_zero_however_many_levels(random):
    noise = random.standard_normal((N, 6)).astype(np.float32)
    shares = explained_variance(noise, LABEL, random.integers(0, 40, N))
    assert max(shares.label, shares.factor, shares.interaction) < 0.03


def test_variance_is_counted_once_where_factor_and_label_coincide():
    shares = explained_variance(vectors(), LABEL, LABEL)
    assert shares.label > 0.3
    assert (shares.factor, shares.interaction) == pytest.approx((0, 0), abs=1e-9)


def test_variance_of_a_number(random):
    number = random.standard_normal(N)
    along = (number[:, None] * np.array([1, 0.0]) + 0.01 * random.standard_normal((N, 2))).astype(np.float32)
    assert explained_variance(along, LABEL, LEVEL, number).factor > 0.98
    slopes = (number * (LABEL - 1))[:, None].astype(np.float32)
    shares = explained_variance(slopes, LABEL, LEVEL, number)
    assert shares.interaction > 0.95
    assert shares.factor < 0.03


def test_a_probe_finds_a_level_where_it_is():
    found = probe_levels(vectors(level=1.0), LABEL, LEVEL, None, seed=0)
    assert found.score > 0.95
    assert (found.chance, found.held_out, found.n_cells, found.n_labels) == (0.5, "cells", N, 3)
    lost = probe_levels(vectors(), LABEL, LEVEL, None, seed=0)
    assert abs(lost.score - 0.5) < 3 * lost.error
    assert lost.error == pytest.approx(0.5 / np.sqrt(N))


def test_a_probe_weighs_levels_equally():
    """The feature is 1 in all 20 cells of one level and in half of the 80 of the other: recalls are 1 and a half."""
    level, feature = np.repeat([0, 1, 1], [20, 40, 40]), np.repeat([1, 1, 0], [20, 40, 40])
    found = probe_levels(feature[:, None].astype(np.float32), np.zeros(100, np.int64), level, None, seed=0)
    assert (found.score, found.chance) == (0.75, 0.5)
    assert found.error == pytest.approx(np.sqrt(0.25 / 20 + 0.25 / 80) / 2)


@pytest.mark.parametrize(
    ("gap", "error", "is_carried"),
    [(0.08, 0.05, False), (0.14, 0.05, False), (0.16, 0.05, True), (0.04, 0.001, False), (0.06, 0.001, True)],
)
def test_carried_is_what_beats_chance_by_much_and_by_three_errors(gap, error, is_carried):
    probe = Probe("balanced accuracy", 0.5 + gap, chance=0.5, error=error, held_out="cells", n_cells=100, n_labels=1)
    found = FactorInEmbedding("mine", VarianceShares(0.0, 0.0, 0.0, 0.0), probe, purity=None)
    assert found.is_carried is is_carried


def test_a_probe_looks_within_labels_only(random):
    assert probe_levels(vectors(), LABEL, LABEL, None, seed=0) is None
    mostly = np.where(random.random(N) < 0.8, LABEL == 1, LABEL != 1).astype(np.int64)
    found = probe_levels(vectors(label=5.0), LABEL, mostly, None, seed=0)
    assert abs(found.score - 0.5) < 3 * found.error, "the label tells much of the level, but that does not count"


def test_a_probe_holds_out_groups(random):
    """Donors can be told apart; the condition is nothing but which donors it has."""
    donor = np.arange(N) // 3 % 6
    condition = donor // 3
    by_donor = (np.eye(6)[donor] + 0.05 * random.standard_normal((N, 6))).astype(np.float32)
    assert probe_levels(by_donor, LABEL, condition, None, seed=0).score > 0.95
    held_out = probe_levels(by_donor, LABEL, condition, donor, seed=0)
    assert held_out.held_out == "groups"
    assert held_out.score < 0.7
    assert probe_levels(by_donor, LABEL, donor, donor, seed=0).held_out == "cells", (
        "a donor cannot be held out of itself"
    )


def test_a_probe_of_a_number(random):
    number = random.standard_normal(N)
    along = (number[:, None] + 0.1 * random.standard_normal((N, 3))).astype(np.float32)
    found = probe_number(along, LABEL, number, seed=0)
    assert (found.measure, found.chance) == ("R2", 0.0)
    assert found.score > 0.5
    assert probe_number(vectors(), LABEL, number, seed=0).score < 0.05
    assert probe_number(vectors(), LABEL, np.ones(N), seed=0) is None


def test_purity():
    apart, mixed = (neighbour_purity(vectors(level=level), LABEL, LEVEL) for level in (3.0, 0.0))
    assert apart.share == 1
    assert apart.expected == mixed.expected == pytest.approx(49 / 99)
    assert mixed.share == pytest.approx(mixed.expected, abs=0.05)
    assert neighbour_purity(vectors(), LABEL, LABEL) is None


def test_reading_columns():
    text = Factor.of("donor", ["d2", "d1", None, "unknown", "d1"])
    assert (text.levels, text.level_N.tolist(), text.number_N) == (("d1", "d2"), [1, 0, -1, -1, 0], None)
    assert Factor.of("flag", [True, False, True]).levels == ("False", "True")
    assert Factor.of("lane", [1, 2, 2]).levels == ("1", "2")
    number = Factor.of("age", [*range(12), None])
    assert number.level_N.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, -1]
    assert np.isnan(number.number_N[-1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"] * 9, "all 9 cells have the same x, or none"),
        ([None] * 9, "all 9 cells have the same x, or none"),
        ([f"cell-{number}" for number in range(600)], "column x has 600 values in 600 cells; expected 2 to 500"),
    ],
)
def test_columns_that_group_nothing_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Factor.of("x", values)


def explained(embedding, factor, **options):
    defaults = {"counts_NG": None, "genes_G": None, "groups": None, "seed": 0}
    return explain_factors([factor], {"mine": embedding}, LABEL, **(defaults | options))


def test_without_counts_only_the_embedding_is_evaluated():
    (effect,) = explained(vectors(level=1.0), Factor.of("protocol", LEVEL.tolist()))
    assert (effect.kind, effect.no_shift) == (None, "no counts were given")
    assert effect.embeddings[0].is_carried
    told = verdict(effect)
    assert "cannot be determined: no counts were given." in told
    assert told.endswith("this embedding carries it.")
    assert json.loads(json.dumps(effect_dict(effect)))["embeddings"][0]["is_carried"] is True


def test_missing_values_are_left_out_and_counted():
    values = [None, *LEVEL.tolist()[1:]]
    (effect,) = explained(vectors(), Factor.of("protocol", values))
    assert effect.n_missing == 1
    assert effect.levels == {"0": 149, "1": 150}
    assert effect.embeddings[0].is_carried is False
    assert "hardly carries it" in verdict(effect)


def test_a_factor_that_is_the_label(random):
    counts = sparse.csr_matrix(random.poisson(2.0, (N, 60)).astype(np.float32))
    effect, depth = explained(
        vectors(), Factor.of("plate", LABEL.tolist()), counts_NG=counts, genes_G=np.arange(60).astype(object)
    )
    assert effect.kind is None
    assert effect.embeddings[0].is_carried is None
    assert "no label has enough cells" in verdict(effect)
    assert (depth.name, depth.no_shift) == (DEPTH, "it is the depth itself")
    assert verdict(depth).startswith(
        f"{DEPTH}: the depth itself, which every type I effect changes. In mine it explains"
    )


def test_values_that_are_no_counts_are_refused():
    counts = sparse.csr_matrix(np.full((N, 3), 0.5))
    with pytest.raises(InputError, match="whole numbers"):
        explained(vectors(), Factor.of("x", LEVEL.tolist()), counts_NG=counts, genes_G=np.array(["a", "b", "c"]))


@pytest.fixture(scope="module", params=["kang_ctrlstim", "pbmc3k"])
def real(request, shared):
    """Counts of at most 1,556 real cells, gene names, labels, and a factor that halves the cells at random."""
    anndata = pytest.importorskip("anndata")
    cells = anndata.read_h5ad(shared / "data" / f"{request.param}.h5ad")
    cells = cells[(cells.obs["cell_type"].astype(str) != "unknown").to_numpy()]
    cells = cells[:: -(-cells.n_obs // 1556)]
    labels = np.unique(cells.obs["cell_type"].astype(str), return_inverse=True)[1]
    half = np.random.default_rng(11).random(cells.n_obs) < 0.5
    return sparse.csr_matrix(cells.X), cells.var["feature_name"].astype(str).to_numpy(object), labels, half


def in_half(counts, half):
    """Places of the stored counts of the second half."""
    return np.repeat(half, np.diff(counts.indptr))


def thin_half(counts, half, share=0.5):
    changed, stored = counts.copy(), in_half(counts, half)
    changed.data[stored] = np.random.default_rng(12).binomial(changed.data[stored].astype(np.int64), share)
    changed.eliminate_zeros()
    return changed


def change_genes(counts, half, change):
    """Change a tenth of the well detected genes of the second half; their columns are returned too."""
    detected = np.flatnonzero(counts.getnnz(axis=0) > 0.1 * counts.shape[0])
    genes = np.random.default_rng(13).choice(detected, len(detected) // 10, replace=False)
    changed = counts.copy()
    changed.data[in_half(counts, half) & np.isin(counts.indices, genes)] *= change
    changed.eliminate_zeros()
    return changed, genes


def evaluated(counts, genes, labels, half):
    factor = Factor.of("planted", np.where(half, "changed", "as it was").tolist())
    embedding = {"PCA": hvg_pca(counts, seed=0)}
    effect, depth = explain_factors([factor], embedding, labels, counts_NG=counts, genes_G=genes, groups=None, seed=0)
    assert depth.embeddings[0].probe.measure == "R2"
    return effect


def test_nothing_planted(real):
    counts, genes, labels, half = real
    effect = evaluated(counts, genes, labels, half)
    assert effect.kind == "none"
    assert effect.shift.n_driven == 0
    assert effect.embeddings[0].is_carried is False
    assert "planted: no effect on the counts." in verdict(effect)


def test_a_planted_type_i_effect(real):
    counts, genes, labels, half = real
    effect = evaluated(thin_half(counts, half), genes, labels, half)
    assert effect.kind == "type I"
    assert effect.shift.depth_fold == pytest.approx(0.5, rel=0.1)
    assert "planted: a type I effect, global. Within labels the depth of changed is 0." in verdict(effect)


@pytest.mark.parametrize("change", [0, 3])
def test_a_planted_type_ii_effect(real, change):
    counts, genes, labels, half = real
    changed, planted = change_genes(counts, half, change)
    effect = evaluated(changed, genes, labels, half)
    assert effect.kind == "type II"
    assert {gene.gene for gene in effect.shift.driven} <= set(genes[planted])
    assert effect.embeddings[0].is_carried
    assert "planted: a type II effect, gene-specific." in verdict(effect)


def test_both_planted(real):
    counts, genes, labels, half = real
    changed, _ = change_genes(counts, half, 3)
    effect = evaluated(thin_half(changed, half), genes, labels, half)
    assert effect.kind == "both"
