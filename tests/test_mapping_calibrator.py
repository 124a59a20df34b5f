import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.mapping.calibrator import Calibrator, fit_calibrator
from scgpt_ray.mapping.reliability import reliability
from scgpt_ray.mapping.vote import Election


def elections(share, runner_up_share, nearness, winner=0):
    n = len(share)
    return Election(
        np.full(n, winner, np.int32), np.array(share, float), np.zeros(n, np.int32),
        np.array(runner_up_share, float), np.array(nearness, float),
    )  # fmt: skip


def random_elections(seed, n):
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.4, 1, n)
    return elections(share, rng.uniform(0, 1 - share), rng.uniform(0.3, 0.9, n)), rng


def test_the_probability_of_a_share_is_how_often_it_was_right():
    # Nothing but the share differs: three levels, and a wrong cell above and a right one below all.
    share = np.repeat([0.5, 0.75, 1.0], 20)
    right = np.concatenate([np.arange(20) < 4, np.arange(20) < 10, np.arange(20) < 19])
    fitted = fit_calibrator(elections(share, np.zeros(60), np.full(60, 0.7)), right)
    found = fitted.probability(elections([0.25, 0.5, 0.75, 1.0], [0] * 4, [0.7] * 4))
    assert found.tolist() == pytest.approx([5 / 21, 5 / 21, 10 / 20, 19 / 21])
    assert fitted.slope[2] == 0


def test_nearness_ranks_votes_of_equal_share():
    n = 200
    nearness = np.linspace(0, 1, n)
    fitted = fit_calibrator(elections(np.ones(n), np.zeros(n), nearness), nearness > 0.3)
    assert fitted.slope[0] == fitted.slope[1] == 0 < fitted.slope[2]
    low, high = fitted.probability(elections([1, 1], [0, 0], [0.1, 0.9]))
    assert low < 0.1 < 0.9 < high


def test_who_got_no_vote_has_no_chance():
    fitted = fit_calibrator(elections([1, 0.5], [0, 0.5], [0.9, 0.2]), np.array([True, False]))
    assert fitted.probability(elections([0.0], [0.0], [-np.inf], winner=-1)).tolist() == [0.0]


@pytest.mark.parametrize("right", [True, False])
def test_one_outcome_only_proves_neither_certainty(right):
    election, _ = random_elections(0, 10)
    probability = fit_calibrator(election, np.full(10, right)).probability(election)
    assert ((probability > 0) & (probability < 1)).all()
    assert (probability > 0.5).all() == right


@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from(["share", "nearness", "both"]))
def test_more_of_any_figure_is_never_less_probable(seed, n, raised):
    election, rng = random_elections(seed, n)
    fitted = fit_calibrator(election, rng.random(n) < election.share**2)
    assert min(fitted.slope) >= 0
    share_rise = rng.uniform(0, 1 - election.share) if raised != "nearness" else 0
    nearness_rise = rng.uniform(0, 0.5, n) if raised != "share" else 0
    higher = elections(election.share + share_rise, election.runner_up_share, election.nearness + nearness_rise)
    before, after = fitted.probability(election), fitted.probability(higher)
    assert (after >= before - 1e-12).all()
    assert ((before > 0) & (before < 1)).all()
    assert Calibrator.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


def test_the_probability_of_a_cell_does_not_depend_on_its_company():
    election, rng = random_elections(3, 500)
    fitted = fit_calibrator(election, rng.random(500) < election.share)
    together = fitted.probability(election)
    alone = [fitted.probability(election.take(np.array([row])))[0] for row in range(500)]
    np.testing.assert_array_equal(together, alone)


def test_an_overconfident_share_is_corrected_on_new_cells():
    (train, rng), (test, other) = random_elections(1, 4000), random_elections(2, 4000)
    chance = lambda election: election.share**3  # noqa: E731
    fitted = fit_calibrator(train, rng.random(4000) < chance(train))
    right = other.random(4000) < chance(test)
    before, after = reliability(test.share, right).ece, reliability(fitted.probability(test), right).ece
    assert before > 0.2
    assert after < 0.05
