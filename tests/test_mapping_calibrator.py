import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.mapping.calibrator import fit_calibrator, reliability
from scgpt_ray.mapping.votes import VoteTally


def tallies(share, runner_up_share, nearness, top=0):
    n = len(share)
    return VoteTally(
        np.full(n, top, np.int32), np.array(share, float), np.zeros(n, np.int32),
        np.array(runner_up_share, float), np.array(nearness, float),
    )  # fmt: skip


def random_tallies(seed, n):
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.4, 1, n)
    return tallies(share, rng.uniform(0, 1 - share), rng.uniform(0.3, 0.9, n)), rng


def test_the_probability_of_a_share_is_how_often_it_was_right():
    # Nothing but the share differs: three levels, and a wrong cell above and a right one below all.
    share = np.repeat([0.5, 0.75, 1.0], 20)
    right = np.concatenate([np.arange(20) < 4, np.arange(20) < 10, np.arange(20) < 19])
    fitted = fit_calibrator(tallies(share, np.zeros(60), np.full(60, 0.7)), right)
    found = fitted.probability(tallies([0.25, 0.5, 0.75, 1.0], [0] * 4, [0.7] * 4))
    assert found.tolist() == pytest.approx([5 / 21, 5 / 21, 10 / 20, 19 / 21])
    assert fitted.slope[2] == 0


def test_nearness_ranks_votes_of_equal_share():
    n = 200
    nearness = np.linspace(0, 1, n)
    fitted = fit_calibrator(tallies(np.ones(n), np.zeros(n), nearness), nearness > 0.3)
    assert fitted.slope[0] == fitted.slope[1] == 0 < fitted.slope[2]
    low, high = fitted.probability(tallies([1, 1], [0, 0], [0.1, 0.9]))
    assert low < 0.1 < 0.9 < high


def test_who_got_no_vote_has_no_chance():
    fitted = fit_calibrator(tallies([1, 0.5], [0, 0.5], [0.9, 0.2]), np.array([True, False]))
    assert fitted.probability(tallies([0.0], [0.0], [-np.inf], top=-1)).tolist() == [0.0]


@pytest.mark.parametrize("right", [True, False])
def test_one_outcome_only_proves_neither_certainty(right):
    tally, _ = random_tallies(0, 10)
    probability = fit_calibrator(tally, np.full(10, right)).probability(tally)
    assert ((probability > 0) & (probability < 1)).all()
    assert (probability > 0.5).all() == right


@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from(["share", "nearness", "both"]))
def test_more_of_any_figure_is_never_less_probable(seed, n, raised):
    tally, rng = random_tallies(seed, n)
    fitted = fit_calibrator(tally, rng.random(n) < tally.share**2)
    assert min(fitted.slope) >= 0
    share_rise = rng.uniform(0, 1 - tally.share) if raised != "nearness" else 0
    nearness_rise = rng.uniform(0, 0.5, n) if raised != "share" else 0
    higher = tallies(tally.share + share_rise, tally.runner_up_share, tally.nearness + nearness_rise)
    before, after = fitted.probability(tally), fitted.probability(higher)
    assert (after >= before - 1e-12).all()
    assert ((before > 0) & (before < 1)).all()


def test_the_probability_of_a_cell_does_not_depend_on_its_company():
    tally, rng = random_tallies(3, 500)
    fitted = fit_calibrator(tally, rng.random(500) < tally.share)
    together = fitted.probability(tally)
    alone = [fitted.probability(tally.take(np.array([row])))[0] for row in range(500)]
    np.testing.assert_array_equal(together, alone)


def test_an_overconfident_share_is_corrected_on_new_cells():
    (train, rng), (test, other) = random_tallies(1, 4000), random_tallies(2, 4000)
    chance = lambda tally: tally.share**3  # noqa: E731
    fitted = fit_calibrator(train, rng.random(4000) < chance(train))
    right = other.random(4000) < chance(test)
    before, after = reliability(test.share, right).ece, reliability(fitted.probability(test), right).ece
    assert before > 0.2
    assert after < 0.05


def test_bins_and_error_by_hand():
    curve = reliability(np.array([0.1, 0.0, 0.95, 1.0, 0.5]), np.array([False, True, True, True, False]))
    assert [vars(part) for part in curve.bins] == [
        {"cells": 2, "confidence": 0.05, "accuracy": 0.5},
        {"cells": 1, "confidence": 0.5, "accuracy": 0.0},
        {"cells": 2, "confidence": 0.975, "accuracy": 1.0},
    ]
    assert curve.ece == pytest.approx((2 * 0.45 + 0.5 + 2 * 0.025) / 5)


def test_an_edge_belongs_to_the_lower_bin_whatever_the_rounding():
    shares = np.array([3 / 10, 0.1 + 0.2, np.float32(0.3)])
    assert [part.cells for part in reliability(shares, np.ones(3, bool)).bins] == [3]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 12))
def test_agrees_with_a_loop(cells, n_bins):
    confidence, right = np.array([c for c, _ in cells]), np.array([r for _, r in cells])
    gap = total = 0
    for b in range(n_bins):
        inside = [
            (c, r) for c, r in cells if b < round(c * n_bins, 6) <= b + 1 or (b == 0 and round(c * n_bins, 6) <= 0)
        ]
        if inside:
            total += len(inside)
            gap += len(inside) * abs(np.mean([c for c, _ in inside]) - np.mean([r for _, r in inside]))
    curve = reliability(confidence, right, n_bins)
    assert curve.n_cells == total == len(cells)
    assert curve.ece == pytest.approx(gap / total, abs=1e-12)
    assert 0 <= curve.ece <= 1


def test_a_confidence_that_is_always_kept_has_no_error():
    confidence = np.repeat([0.25, 0.75], 40)
    right = np.concatenate([np.arange(40) < 10, np.arange(40) < 30])
    assert reliability(confidence, right).ece == 0
