"""Votes: who gets a cell's label by the written rules, however the neighbours and their labels lie in memory."""

from collections import defaultdict
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.mapping.votes import VoteRules, balance_weights, distance_weights, label_votes, tally_votes

LABELS = pa.table(
    {
        "soma_joinid": pa.array([1, 2, 3, 4, 5], pa.int64()),
        "cell_type": pa.array(["T", "T", "B", "B", None]).dictionary_encode(),
        "dataset_id": pa.array(["x", "x", "y", None, "y"]),
    }
)
IDS = np.array([[1, 2, 3, 5], [3, 1, 4, -1], [5, -1, -1, -1]], np.int64)
SCORES = np.array([[0.75, 0.5, 0.25, 0.125], [0.75, 0.5, 0.25, -np.inf], [0.5] + [-np.inf] * 3], np.float32)


def votes(rules, reference_cells=None, ids=IDS, labels=LABELS):
    return label_votes(ids, SCORES[: len(ids)], labels, "cell_type", rules, reference_cells or {})


def test_a_plain_vote():
    cast = votes(VoteRules())
    assert cast.names == ("B", "T")
    assert cast.codes_QK.tolist() == [[1, 1, 0, -1], [0, 1, 0, -1], [-1] * 4]
    assert cast.top_labels.tolist() == ["T", "B", None]
    assert cast.runners_up.tolist() == ["B", "T", None]
    assert cast.tally.share.tolist() == [2 / 3, 2 / 3, 0]


def test_the_nearer_weigh_more():
    cast = votes(VoteRules("distance"))
    assert cast.weights_QK.tolist() == [[1, 0.5, 0, 0], [1, 0.5, 0, 0], [0] * 4]
    assert cast.top_labels.tolist() == ["T", "B", None]
    assert cast.tally.share.tolist() == [1, 2 / 3, 0]


def test_balance_by_label_divides_by_its_share():
    # T is 90 of 100 cells: its two votes count 2 / 90, the one for B 1 / 10.
    cast = votes(VoteRules(balance_by="cell_type"), {"cell_type": {"T": 90, "B": 10, None: 900}})
    assert cast.top_labels.tolist() == ["B", "B", None]
    assert cast.tally.share[0] == pytest.approx((1 / 10) / (1 / 10 + 2 / 90))


def test_balance_by_dataset_counts_the_cells_without_one_as_one_more():
    cast = votes(VoteRules(balance_by="dataset_id"), {"dataset_id": {"x": 4, "y": 1, None: 2}})
    assert cast.weights_QK[1].tolist() == pytest.approx([7 / 3, 7 / 12, 7 / 6, 0])
    assert cast.top_labels.tolist() == ["B", "B", None]
    assert cast.tally.share[0] == pytest.approx((7 / 3) / (7 / 3 + 2 * 7 / 12))


def test_distance_and_balance_multiply():
    cast = votes(VoteRules("distance", "cell_type"), {"cell_type": {"T": 90, "B": 10}})
    assert cast.weights_QK[1].tolist() == pytest.approx([100 / 20, 0.5 * 100 / 180, 0, 0])


@given(st.integers(1, 1000), st.permutations(range(4)))
def test_equal_shares_are_no_balance_and_the_order_of_neighbours_does_not_matter(cells, order):
    plain = votes(VoteRules())
    for column, values in (("cell_type", ["T", "B"]), ("dataset_id", ["x", "y", None])):
        found = votes(VoteRules(balance_by=column), {column: dict.fromkeys(values, cells)})
        for name, figures in vars(plain.tally).items():
            np.testing.assert_array_equal(getattr(found.tally, name), figures)
    shuffled = label_votes(IDS[:, order], SCORES[:, order], LABELS, "cell_type", VoteRules("distance"), {})
    expected = votes(VoteRules("distance"))
    for name, figures in vars(expected.tally).items():
        np.testing.assert_array_equal(getattr(shuffled.tally, name), figures)


def test_a_value_that_was_not_counted_is_refused():
    with pytest.raises(ReferenceSetError, match="a neighbour has y, which is none of the reference's 2 values"):
        votes(VoteRules(balance_by="dataset_id"), {"dataset_id": {"x": 2, None: 2}})
    with pytest.raises(ReferenceSetError, match="a neighbour has None, which"):
        votes(VoteRules(balance_by="dataset_id"), {"dataset_id": {"x": 2, "y": 2}})
    with pytest.raises(ReferenceSetError, match="keeps no label column 'tissue'"):
        votes(VoteRules(balance_by="tissue"), {"tissue": {"blood": 5}})


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.set_column(1, "cell_type", LABELS["cell_type"].cast(pa.string())),
        LABELS.set_column(1, "cell_type", LABELS["cell_type"].cast(pa.large_string())),
        pa.concat_tables([LABELS.slice(0, 1), LABELS.slice(1, 0), LABELS.slice(1)]),
        pa.concat_tables([LABELS, LABELS]).slice(5, 5),
        LABELS.take(pa.array([4, 2, 0, 3, 1])),
        pa.concat_tables(
            [
                piece.set_column(1, "cell_type", piece["cell_type"].cast(pa.string()).dictionary_encode())
                for piece in (LABELS.slice(0, 3), LABELS.slice(3))
            ]
        ),
    ],
    ids=["string", "large_string", "chunks", "slice", "order", "two_dictionaries"],
)
def test_how_the_labels_lie_in_memory_does_not_matter(labels):
    for rules, cells in ((VoteRules(), {}), (VoteRules("distance", "cell_type"), {"cell_type": {"T": 90, "B": 10}})):
        found, expected = votes(rules, cells, labels=labels), votes(rules, cells)
        assert found.names == expected.names
        np.testing.assert_array_equal(found.codes_QK, expected.codes_QK)
        np.testing.assert_array_equal(found.weights_QK, expected.weights_QK)


def test_no_queries_and_no_labels():
    assert votes(VoteRules("distance"), ids=IDS[:0]).top_labels.tolist() == []
    nothing = pa.table({"soma_joinid": [1], "cell_type": pa.nulls(1, pa.string())})
    assert votes(VoteRules(), ids=np.array([[1, -1, -1, -1]]), labels=nothing).top_labels.tolist() == [None]
    assert votes(VoteRules(), ids=np.full((1, 4), -1), labels=LABELS.slice(0, 0)).top_labels.tolist() == [None]


@pytest.mark.parametrize(
    ("neighbour", "labels", "problem"),
    [
        (6, LABELS, "neighbour 6 has no row"),
        (0, LABELS, "neighbour 0 has no row"),
        (1, pa.concat_tables([LABELS, LABELS.slice(1, 1)]), "two rows"),
    ],
)
def test_a_broken_reference_is_refused(neighbour, labels, problem):
    with pytest.raises(ReferenceSetError, match=problem):
        votes(VoteRules(), ids=np.array([[neighbour, -1, -1, -1]]), labels=labels)


@pytest.mark.parametrize(
    ("codes", "scores", "top", "share"),
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
def test_majority_then_score_then_code(codes, scores, top, share):
    tally = tally_votes(np.array([codes], np.int32), np.array([scores], np.float32), 3)
    assert (tally.top.dtype, tally.share.dtype) == (np.int32, np.float64)
    assert (tally.top.tolist(), tally.share.tolist()) == ([top], [share])


def test_a_code_without_a_label_is_our_own_mistake():
    with pytest.raises(AssertionError):
        tally_votes(np.array([[3]], np.int32), np.ones((1, 1), np.float32), 3)


def tally_one_by_one(codes_QK, scores_QK, weights_QK):
    """Slow twin with exact sums: top label, share, runner-up, its share, nearness."""
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


def test_a_tally_by_hand():
    tally = tally_votes(
        np.array([[2, 0, 2, 1], [1, 1, -1, -1], [-1, -1, -1, -1]], np.int32),
        np.array([[0.75, 0.5, 0.25, 0.5], [0.5, 0.25, 0.9, 0.9], [0.9] * 4], np.float32),
        3,
        np.array([[1, 2, 0.5, 0.5], [1, 0, 9, 9], [1, 1, 1, 1]]),
    )
    assert tally.top.tolist() == [0, 1, -1]
    assert tally.share.tolist() == [0.5, 1.0, 0.0]
    assert tally.runner_up.tolist() == [2, -1, -1]
    assert tally.runner_up_share.tolist() == [0.375, 0.0, 0.0]
    assert tally.margin.tolist() == [0.125, 1.0, 0.0]
    assert tally.nearness.tolist() == [0.5, 0.375, -np.inf]
    assert tally.has_votes.tolist() == [True, True, False]
    assert tally.take(np.array([2, 0])).top.tolist() == [-1, 0]


def test_agrees_with_the_definition_at_size():
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 40, (2000, 30)).astype(np.int32)
    scores = rng.uniform(0.2, 1, (2000, 30)).astype(np.float32)
    tally = tally_votes(codes, scores, 40)
    for found, expected in zip(
        vars(tally).values(), tally_one_by_one(codes, scores, np.ones(codes.shape)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@given(data=st.data(), shape=st.tuples(st.integers(0, 9), st.integers(0, 9)), n_labels=st.integers(0, 4))
def test_a_weighted_tally_agrees_with_the_definition_in_any_order(data, shape, n_labels):
    codes = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-1, n_labels - 1)))
    scores = (data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-16, 16))) / 16).astype(np.float32)
    weights = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(1, 7))) / 4
    tally = tally_votes(codes, scores, n_labels, weights)
    if shape[0]:
        for found, expected in zip(vars(tally).values(), tally_one_by_one(codes, scores, weights), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    order = data.draw(st.permutations(range(shape[1])))
    shuffled = tally_votes(codes[:, order], scores[:, order], n_labels, weights[:, order])
    for name, values in vars(tally).items():
        np.testing.assert_array_equal(getattr(shuffled, name), values)


def test_votes_that_differ_by_rounding_tie():
    # 0.1 + 0.2 is not 0.3 in floats; the scores then decide.
    codes = np.array([[0, 0, 1]], np.int32)
    for scores, top in (([0.1, 0.1, 0.9], 1), ([0.9, 0.9, 0.1], 0)):
        tally = tally_votes(codes, np.array([scores], np.float32), 2, np.array([[0.1, 0.2, 0.3]]))
        assert tally.top.tolist() == [top]


@pytest.mark.parametrize(
    ("codes", "scores", "weights"),
    [
        ([0, 1, 0], [1.0, 0.75, 0.5], [1, 0.5, 0]),
        ([0, 1], [0.5, 0.5], [1, 1]),
        ([0], [0.25], [1]),
        # The nearest and the farthest have no label: they are not the ends of the scale.
        ([-1, 0, 1, 1, -1], [1.0, 0.75, 0.5, 0.25, -np.inf], [0, 1, 0.5, 0, 0]),
        ([-1, -1], [0.5, -np.inf], [0, 0]),
        ([], [], []),
    ],
)
def test_nearer_votes_count_more(codes, scores, weights):
    found = distance_weights(np.array([codes], np.int32), np.array([scores], np.float32))
    assert found.tolist() == [weights]


@given(st.data(), st.integers(1, 8), st.sampled_from([0.25, 2.0]), st.sampled_from([-1.0, 0.0, 3.0]))
def test_scale_and_origin_of_the_score_do_not_matter(data, k, scale, origin):
    scores = data.draw(hnp.arrays(np.int32, (3, k), elements=st.integers(-16, 16))).astype(np.float32)
    codes = data.draw(hnp.arrays(np.int32, (3, k), elements=st.integers(-1, 1)))
    weights = distance_weights(codes, scores)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights.max(axis=1) == (codes != -1).any(axis=1)).all()
    assert (weights[codes == -1] == 0).all()
    np.testing.assert_array_equal(distance_weights(codes, (scores * scale + origin).astype(np.float32)), weights)


def test_every_group_gets_the_same_total():
    cells = np.array([1, 4, 5], np.int64)
    weights = balance_weights(np.array([[0, 1, 2, -1]], np.int32), cells)
    assert weights.tolist() == [[10 / 3, 10 / 12, 10 / 15, 0]]
    assert (weights[0, :3] * cells).tolist() == pytest.approx([10 / 3] * 3)


@given(st.integers(1, 9), st.integers(1, 10**9), st.data())
def test_equal_groups_weigh_one(n_groups, cells, data):
    codes = data.draw(hnp.arrays(np.int32, (2, 5), elements=st.integers(0, n_groups - 1)))
    assert (balance_weights(codes, np.full(n_groups, cells, np.int64)) == 1).all()
