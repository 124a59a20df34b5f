"""Factors in embeddings and counts: cases known beforehand, and effects planted in real cells."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse, stats

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.factors.effects import DEPTH, Factor, Replicates, explain_factors
from scgpt_ray.evaluation.factors.probe import Probe, _corrected_t, neighbour_purity, probe_levels
from scgpt_ray.evaluation.factors.variance import explained_variance
from scgpt_ray.evaluation.factors.verdict import SIZES, effect_dict, size_of, verdict

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
    assert (found.chance, found.held_out, found.n_folds, found.n_cells, found.n_labels) == (0.5, "cells", 5, N, 3)
    assert (found.p, found.low, found.threshold, found.is_above_chance) == (None,) * 4, "cells are not replicates"
    lost = probe_levels(vectors(), LABEL, LEVEL, None, seed=0)
    assert abs(lost.score - 0.5) < 0.1


def test_a_probe_weighs_levels_equally():
    """The feature is 1 in all 20 cells of one level and in half of the 80 of the other: recalls are 1 and a half."""
    level, feature = np.repeat([0, 1, 1], [20, 40, 40]), np.repeat([1, 1, 0], [20, 40, 40])
    found = probe_levels(feature[:, None].astype(np.float32), np.zeros(100, np.int64), level, None, seed=0)
    assert (found.score, found.chance) == (pytest.approx(0.75), 0.5)


def test_a_probe_looks_within_labels_only(random):
    assert probe_levels(vectors(), LABEL, LABEL, None, seed=0) is None
    mostly = np.where(random.random(N) < 0.8, LABEL == 1, LABEL != 1).astype(np.int64)
    found = probe_levels(vectors(label=5.0), LABEL, mostly, None, seed=0)
    assert abs(found.score - 0.5) < 0.1, "the label predicts the level well, but that does not count"


def test_a_probe_holds_out_replicates(random):
    """Donors can be distinguished; the condition is nothing but which donors it has."""
    donor = np.arange(N) // 3 % 6
    condition = donor // 3
    by_donor = (np.eye(6)[donor] + 0.05 * random.standard_normal((N, 6))).astype(np.float32)
    assert probe_levels(by_donor, LABEL, condition, None, seed=0).score > 0.95
    held_out = probe_levels(by_donor, LABEL, condition, donor, seed=0)
    assert (held_out.held_out, held_out.n_folds, held_out.n_cells) == ("replicates", 3, N)
    assert held_out.score < 0.7
    assert held_out.is_above_chance is False
    assert probe_levels(by_donor, LABEL, donor, donor, seed=0).held_out == "cells", "a donor has no other donor"


@pytest.mark.parametrize(("n_donors", "n_folds", "is_above"), [(16, 5, True), (6, 3, True), (4, 2, None)])
@pytest.mark.parametrize("is_within", [True, False])
def test_a_probe_finds_a_level_in_other_replicates(n_donors, n_folds, is_above, is_within):
    """Two replicates per level are held out in turn, but are too few for a claim."""
    donor = np.arange(N) // 3 % n_donors
    donor, level = (np.arange(N) // 6 % (n_donors // 2), LEVEL) if is_within else (donor, donor % 2)
    moved = np.random.default_rng(3).normal(0, 0.7, (N, 4))
    moved[:, 0] += 2 * level
    found = probe_levels(moved.astype(np.float32), LABEL, level, donor, seed=0)
    assert (found.n_folds, found.is_above_chance) == (n_folds, is_above)
    assert found.score > 0.85
    if is_above:
        assert found.low < found.score < found.high
        assert found.low > found.chance
        assert found.threshold - found.chance == pytest.approx(found.score - found.low)


def test_replicates_of_both_levels_are_held_out_in_turn():
    """Of two donors one has more cells of the one level, and one of the other: held out together, none would train."""
    donor = np.arange(N) // 3 % 2
    level = np.where(np.arange(N) % 5 < 2, donor, 1 - donor)
    moved = np.random.default_rng(4).normal(0, 0.5, (N, 4))
    moved[:, 0] += 2 * level
    for seed in range(4):
        found = probe_levels(moved.astype(np.float32), LABEL, level, donor, seed=seed)
        assert (found.held_out, found.n_folds, found.n_cells) == ("replicates", 2, N)
        assert found.score > 0.85


@pytest.mark.parametrize(
    ("score", "p", "is_above"), [(0.7, 0.049, True), (0.7, 0.051, False), (0.3, 0.001, False), (0.7, None, None)]
)
def test_a_probe_is_above_chance_where_it_is_no_chance(score, p, is_above):
    assert Probe(score, 0.5, 0.0, 1.0, p, 0.6, "replicates", 4, 100, 1).is_above_chance is is_above


def test_the_p_value_of_a_probe_by_hand():
    """Folds that are 0.1, 0.2 and 0.3 above chance: mean 0.2, variance 0.01 (1/3 + 1/2), two degrees of freedom."""
    low, high, p, threshold = _corrected_t(np.array([0.1, 0.2, 0.3]), 0.5)
    error = 0.1 * np.sqrt(5 / 6)
    assert p == pytest.approx(2 * stats.t.sf(0.2 / error, 2))
    assert (low, high) == pytest.approx((0.7 - stats.t.isf(0.025, 2) * error, 0.7 + stats.t.isf(0.025, 2) * error))
    assert threshold == pytest.approx(0.5 + stats.t.isf(0.025, 2) * error)
    assert [_corrected_t(np.full(3, value), 0.5)[2] for value in (0.5, 0.0)] == [0, 1]


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


DONOR = np.arange(N) // 6 % 5
"""Five donors with all labels and both levels."""


def explained(embedding, factor, **options):
    donors = Replicates.of("donor", DONOR.tolist())
    defaults = {"counts_NG": None, "genes_G": None, "replicates": donors, "seed": 0}
    return explain_factors([factor], {"mine": embedding}, LABEL.astype(str), **(defaults | options))


def test_without_counts_only_the_embedding_is_evaluated():
    (effect,) = explained(vectors(level=1.0), Factor.of("protocol", LEVEL.tolist()))
    assert (effect.kind, effect.no_shift, effect.unit) == ("cannot tell", "no counts were given", "donor")
    assert effect.replicates == {"0": 5, "1": 5}
    assert effect.embeddings[0].is_carried
    text = verdict(effect)
    assert "cannot tell whether its effect is type I or type II: no counts were given." in text
    assert "for held-out replicates (donor)" in text
    assert text.endswith("this embedding carries it.")
    assert json.loads(json.dumps(effect_dict(effect)))["embeddings"][0]["is_carried"] is True


@pytest.mark.parametrize(
    ("share", "size"),
    [(-0.01, "negligible"), (0.0099, "negligible"), (0.012, "small"), (0.0599, "small"), (0.06, "moderate"),
     (0.125, "moderate"), (0.14, "large"), (1.0, "large")],
)  # fmt: skip
def test_shares_of_different_size_have_different_names(share, size):
    assert size_of(share, SIZES) == size


def test_a_condition_should_stay_and_other_factors_are_compared_within_it():
    """A lane that is the treatment: without conditions its effect is large, within them there is none to see."""
    lane, treatment = LEVEL.tolist(), LEVEL.astype(str)
    (alone,) = explained(vectors(level=1.0), Factor.of("lane", lane))
    (within,) = explained(vectors(level=1.0), Factor.of("lane", lane), conditions=treatment)
    assert alone.embeddings[0].variance.factor > 0.14
    assert "a large share" in verdict(alone)
    assert within.embeddings[0].variance.factor == pytest.approx(0, abs=1e-9)
    assert "of the label and condition" in verdict(within)
    kept = replace(Factor.of("treatment", treatment), is_condition=True)
    (effect,) = explained(vectors(level=1.0), kept, conditions=treatment)
    assert effect.embeddings == alone.embeddings
    assert "treatment is a condition: its effect should stay" in verdict(effect)


def test_missing_values_and_replicates_are_left_out_and_counted():
    values, donors = [None, *LEVEL.tolist()[1:]], ["x", "unknown", *DONOR.tolist()[2:]]
    (effect,) = explained(vectors(), Factor.of("protocol", values), replicates=Replicates.of("donor", donors))
    assert effect.n_missing == 2
    assert effect.levels == {"0": 148, "1": 150}
    assert effect.embeddings[0].is_carried is False
    assert "below the detection threshold of 0." in verdict(effect)


COUNTS = sparse.csr_matrix(np.random.default_rng(0).poisson(5.0, (N, 60)).astype(np.float32))
COUNTED = {"counts_NG": COUNTS, "genes_G": np.arange(60).astype(object)}


def test_a_factor_that_is_the_label():
    effect, depth = explained(vectors(), Factor.of("plate", LABEL.tolist()), **COUNTED)
    assert effect.kind == "cannot tell"
    assert effect.embeddings[0].is_carried is None
    assert "no label has enough cells" in verdict(effect)
    assert (depth.name, depth.no_shift) == (DEPTH, "it is the depth itself")
    assert verdict(depth).startswith(
        f"{DEPTH}: the depth itself, which every type I effect changes. In mine it explains"
    )


@pytest.mark.parametrize(
    ("replicates", "unit", "why"),
    [
        (None, "cell", "there is no column of replicates such as donors. Unit: cell, which is about these cells only."),
        (Replicates.of("lane", LEVEL.tolist()), "cell", "each value of lane is a single replicate. Unit: cell"),
        (
            Replicates.of("donor", (DONOR % 2).tolist()),
            "donor",
            "fewer than 3 replicates (donor) per level can be compared. Unit: donor.",
        ),
    ],
)
def test_without_enough_replicates_nothing_is_claimed(replicates, unit, why):
    """Whatever is planted; the estimates are there."""
    counts = sparse.csr_matrix(COUNTS.multiply(1 + 3 * LEVEL[:, None]))
    effect, _ = explained(
        vectors(level=3.0),
        Factor.of("lane", LEVEL.tolist()),
        **(COUNTED | {"counts_NG": counts}),
        replicates=replicates,
    )
    assert (effect.kind, effect.unit, effect.embeddings[0].is_carried) == ("cannot tell", unit, None)
    assert effect.shift.depth.ratio == pytest.approx(4, rel=0.1)
    assert effect.embeddings[0].probe.score > 0.95
    text = verdict(effect)
    assert why in text
    assert "(not tested)" in text
    assert text.endswith("cannot tell whether this embedding carries it for other cells than these.")


def test_what_is_not_detected_comes_with_interval_p_value_and_threshold():
    effect, _ = explained(vectors(), Factor.of("lane", LEVEL.tolist()), **COUNTED)
    assert effect.kind == "not detected"
    text = verdict(effect)
    assert text.startswith("lane: below the detection thresholds of type I and type II effects.")
    assert "Compared: within 5 replicates (donor)." in text
    assert re.search(r"times that of the others \(95 % interval 0\.\d\d to 1\.\d\d, p = 0\.\d+; below the", text)
    assert "no effect" not in text


def test_values_that_are_no_counts_are_refused():
    counts = sparse.csr_matrix(np.full((N, 3), 0.5))
    with pytest.raises(InputError, match="whole numbers"):
        explained(vectors(), Factor.of("x", LEVEL.tolist()), counts_NG=counts, genes_G=np.array(["a", "b", "c"]))
