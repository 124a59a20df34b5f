"""Effects of a factor on real cells: what is planted is found, and arbitrary splits of donors claim nothing."""

import numpy as np
import pytest
from scipy import sparse

from scgpt_ray.benchmark.factor_power import PLANTED, effect_of, halves, read, splits, table
from scgpt_ray.evaluation.components import hvg_pca
from scgpt_ray.evaluation.factors.contrast import SIGNIFICANCE

RANDOM = np.random.default_rng(0)


def test_halves():
    assert halves(4) == [(0, 1), (0, 2), (0, 3)]
    assert len(halves(8)) == 35
    donor = np.arange(40) % 4
    between = [tuple(np.unique(donor[changed])) for changed in splits(donor, 4, 9, is_between=True)]
    assert sorted(between) == halves(4)
    within = list(splits(donor, 4, 5, is_between=False))
    assert len({changed.tobytes() for changed in within}) == 5


@pytest.mark.parametrize(
    ("planted", "total"),
    [("nothing", 1), ("depth x 0.85", 0.85), ("10 % of the genes halved", 0.95), ("10 % ambient RNA", 1)],
)
def test_what_is_planted(planted, total):
    """In the changed cells only, and of the given size."""
    counts = sparse.csr_matrix(RANDOM.poisson(3.0, (200, 100)).astype(np.float32))
    changed, before = np.arange(200) % 2 == 1, counts.toarray()
    after = PLANTED[planted](counts, changed, RANDOM).toarray()
    np.testing.assert_array_equal(after[~changed], before[~changed])
    assert after[changed].sum() / before[changed].sum() == pytest.approx(total, abs=0.02)
    np.testing.assert_array_equal(counts.toarray(), before)
    if planted == "10 % of the genes halved":
        fold = after[changed].sum(axis=0) / before[changed].sum(axis=0)
        assert (fold < 0.75).sum() == 10
        assert (fold == 1).sum() == 90


@pytest.fixture(scope="module")
def kang(shared):
    """Counts of 12,261 cells of 8 donors, labels and donors."""
    counts_NG, (labels, donors) = read(str(shared / "data" / "kang_ctrl_12k.h5ad"), "cell_type", "donor")
    return counts_NG, labels, donors


@pytest.mark.slow
def test_arbitrary_splits_of_donors_claim_nothing(kang):
    """All 35, with a sixth of the cells; claims stay within the stated rate."""
    counts_NG, labels, donors = (each[::6] for each in kang)
    donor_N, components = np.unique(donors, return_inverse=True)[1], hvg_pca(counts_NG, seed=0)
    found = [
        effect_of(counts_NG, components, changed, labels, donors) for changed in splits(donor_N, 8, 35, is_between=True)
    ]
    assert {(effect.shift.n_level, effect.shift.n_others) for effect in found} == {(4, 4)}
    claims = np.array([
        [effect.shift.depth.is_claimed, effect.shift.genes.is_claimed, effect.embeddings[0].is_carried]
        for effect in found
    ])  # fmt: skip
    assert len(claims) == 35
    assert (claims.mean(axis=0) <= SIGNIFICANCE).all(), claims.sum(axis=0)


@pytest.mark.slow
def test_planted_effects_are_found(kang):
    """Within donors."""
    counts_NG, labels, donors = kang
    changed = np.random.default_rng(1).random(len(labels)) < 0.5
    kinds = {}
    for name, plant in PLANTED.items():
        planted = plant(counts_NG, changed, np.random.default_rng(2))
        kept = np.asarray(planted.sum(axis=1)).ravel() > 0
        components = hvg_pca(planted[kept], seed=0)
        kinds[name] = effect_of(planted[kept], components, changed[kept], labels[kept], donors[kept]).kind
    assert kinds == {
        "nothing": "not detected",
        "depth x 0.85": "type I",
        "depth x 0.7": "type I",
        "10 % of the genes halved": "type II",
        "10 % ambient RNA": "type II",
    }


def test_the_table():
    random, n = np.random.default_rng(0), 900
    donors = np.array(["a", "b", "c"])[np.arange(n) % 3]
    counts = sparse.csr_matrix(random.poisson(5.0, (n, 60)).astype(np.float32))
    lines = list(table(counts, np.full(n, "T"), donors, 1))
    assert len(lines) == 2 + len(PLANTED)
    assert lines[4].startswith("| within 3 donors | depth x 0.7 | 1 of 1 | 0 of 1 |")
