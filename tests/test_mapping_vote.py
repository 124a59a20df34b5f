from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scgpt_ray.mapping.vote import elect, vote


def vote_one_by_one(codes_QK, scores_QK):
    """Slow twin: the definition, one query at a time, with exact sums."""
    winners, confidences = [], []
    for codes, scores in zip(codes_QK.tolist(), scores_QK.tolist(), strict=True):
        votes, sums = defaultdict(int), defaultdict(Fraction)
        for code, score in zip(codes, scores, strict=True):
            if code != -1:
                votes[code] += 1
                sums[code] += Fraction(score)
        ranked = sorted(votes, key=lambda code: (-votes[code], -sums[code], code))
        winners.append(ranked[0] if ranked else -1)
        confidences.append(votes[ranked[0]] / sum(votes.values()) if ranked else 0.0)
    return np.array(winners, np.int32), np.array(confidences, np.float32)


@pytest.mark.parametrize(
    ("codes", "scores", "winner", "confidence"),
    [
        ([0, 0, 1], [0.1, 0.1, 0.9], 0, 2 / 3),
        ([0, 1], [0.5, 0.6], 1, 0.5),
        ([2, 1], [0.5, 0.5], 1, 0.5),
        ([1, -1, -1], [0.5, 0.9, -np.inf], 1, 1.0),
        ([-1, -1], [0.5, -np.inf], -1, 0.0),
        ([0, 1, 1, 0, 2], [0.25, 0.5, 0.25, 0.5, 0.99], 0, 0.4),
        ([1, 0, 1, 0], [-0.5, -0.25, -0.25, -0.25], 0, 0.5),
        ([], [], -1, 0.0),
    ],
)
def test_majority_then_score_then_code(codes, scores, winner, confidence):
    winners, confidences = vote(np.array([codes], np.int32), np.array([scores], np.float32), 3)
    assert (winners.dtype, confidences.dtype) == (np.int32, np.float32)
    assert winners.tolist() == [winner]
    assert confidences.tolist() == [np.float32(confidence)]


def test_no_queries():
    winners, confidences = vote(np.empty((0, 5), np.int32), np.empty((0, 5), np.float32), 3)
    assert (winners.shape, confidences.shape) == ((0,), (0,))


@given(
    data=st.data(),
    shape=hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    n_labels=st.integers(0, 4),
)
def test_agrees_with_the_definition(data, shape, n_labels):
    codes = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-1, n_labels - 1)))
    sixteenths = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-16, 16)))
    scores = np.where(codes == -1, -np.inf, sixteenths / 16).astype(np.float32)
    for found, expected in zip(vote(codes, scores, n_labels), vote_one_by_one(codes, scores), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_agrees_with_the_definition_at_size():
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 40, (2000, 30)).astype(np.int32)
    scores = rng.uniform(0.2, 1, (2000, 30)).astype(np.float32)
    for found, expected in zip(vote(codes, scores, 40), vote_one_by_one(codes, scores), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_code_without_a_label_is_our_own_mistake():
    with pytest.raises(AssertionError):
        vote(np.array([[3]], np.int32), np.ones((1, 1), np.float32), 3)


def elect_one_by_one(codes_QK, scores_QK, weights_QK):
    """Slow twin with exact sums: winner, share, runner-up, its share, nearness."""
    found = []
    for codes, scores, weights in zip(codes_QK.tolist(), scores_QK.tolist(), weights_QK.tolist(), strict=True):
        votes, sums, voters = defaultdict(Fraction), defaultdict(Fraction), []
        for code, score, weight in zip(codes, scores, weights, strict=True):
            if code != -1:
                votes[code] += Fraction(weight)
                sums[code] += Fraction(score)
                voters.append(Fraction(score))
        total = sum(votes.values())
        ranked = [(code, float(votes[code] / total)) for code in sorted(votes, key=lambda c: (-votes[c], -sums[c], c))]
        ranked += [(-1, 0.0)] * 2
        nearness = float(sum(voters) / len(voters)) if voters else -np.inf
        found.append((*ranked[0], *ranked[1], nearness))
    return [np.array(column) for column in zip(*found, strict=True)]


def test_an_election_by_hand():
    election = elect(
        np.array([[2, 0, 2, 1], [1, 1, -1, -1], [-1, -1, -1, -1]], np.int32),
        np.array([[0.75, 0.5, 0.25, 0.5], [0.5, 0.25, 0.9, 0.9], [0.9] * 4], np.float32),
        3,
        np.array([[1, 2, 0.5, 0.5], [1, 0, 9, 9], [1, 1, 1, 1]]),
    )
    assert election.winner.tolist() == [0, 1, -1]
    assert election.share.tolist() == [0.5, 1.0, 0.0]
    assert election.runner_up.tolist() == [2, -1, -1]
    assert election.runner_up_share.tolist() == [0.375, 0.0, 0.0]
    assert election.margin.tolist() == [0.125, 1.0, 0.0]
    assert election.nearness.tolist() == [0.5, 0.375, -np.inf]
    assert election.held.tolist() == [True, True, False]
    assert election.take(np.array([2, 0])).winner.tolist() == [-1, 0]


@given(data=st.data(), shape=st.tuples(st.integers(0, 9), st.integers(1, 9)), n_labels=st.integers(1, 4))
def test_a_weighted_election_agrees_with_the_definition_in_any_order(data, shape, n_labels):
    codes = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-1, n_labels - 1)))
    scores = (data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-16, 16))) / 16).astype(np.float32)
    weights = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(1, 7))) / 4
    election = elect(codes, scores, n_labels, weights)
    figures = [election.winner, election.share, election.runner_up, election.runner_up_share, election.nearness]
    if shape[0]:
        for found, expected in zip(figures, elect_one_by_one(codes, scores, weights), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    order = data.draw(st.permutations(range(shape[1])))
    shuffled = elect(codes[:, order], scores[:, order], n_labels, weights[:, order])
    for name, values in vars(election).items():
        np.testing.assert_array_equal(getattr(shuffled, name), values)


def test_votes_that_differ_by_rounding_tie():
    # 0.1 + 0.2 is not 0.3 in floats; the scores then decide.
    codes = np.array([[0, 0, 1]], np.int32)
    for scores, winner in (([0.1, 0.1, 0.9], 1), ([0.9, 0.9, 0.1], 0)):
        assert elect(codes, np.array([scores], np.float32), 2, np.array([[0.1, 0.2, 0.3]])).winner.tolist() == [winner]
