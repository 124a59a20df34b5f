import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.mapping.ballot import VoteRules, hold_ballot

LABELS = pa.table(
    {
        "soma_joinid": pa.array([1, 2, 3, 4, 5], pa.int64()),
        "cell_type": pa.array(["T", "T", "B", "B", None]).dictionary_encode(),
        "dataset_id": pa.array(["x", "x", "y", None, "y"]),
    }
)
IDS = np.array([[1, 2, 3, 5], [3, 1, 4, -1], [5, -1, -1, -1]], np.int64)
SCORES = np.array([[0.75, 0.5, 0.25, 0.125], [0.75, 0.5, 0.25, -np.inf], [0.5] + [-np.inf] * 3], np.float32)


def ballot(rules, reference_cells=None, ids=IDS, labels=LABELS):
    return hold_ballot(ids, SCORES[: len(ids)], labels, "cell_type", rules, reference_cells or {})


def test_a_plain_vote():
    held = ballot(VoteRules())
    assert held.names == ("B", "T")
    assert held.codes_QK.tolist() == [[1, 1, 0, -1], [0, 1, 0, -1], [-1] * 4]
    assert held.winners.tolist() == ["T", "B", None]
    assert held.runners_up.tolist() == ["B", "T", None]
    assert held.election.share.tolist() == [2 / 3, 2 / 3, 0]


def test_the_nearer_weigh_more():
    held = ballot(VoteRules("distance"))
    assert held.weights_QK.tolist() == [[1, 0.5, 0, 0], [1, 0.5, 0, 0], [0] * 4]
    assert held.winners.tolist() == ["T", "B", None]
    assert held.election.share.tolist() == [1, 2 / 3, 0]


def test_balance_by_label_divides_by_its_share():
    # T is 90 of 100 cells: its two votes count 2 / 90, the one for B 1 / 10.
    held = ballot(VoteRules(balance_by="cell_type"), {"cell_type": {"T": 90, "B": 10, None: 900}})
    assert held.winners.tolist() == ["B", "B", None]
    assert held.election.share[0] == pytest.approx((1 / 10) / (1 / 10 + 2 / 90))


def test_balance_by_dataset_counts_the_cells_without_one_as_one_more():
    held = ballot(VoteRules(balance_by="dataset_id"), {"dataset_id": {"x": 4, "y": 1, None: 2}})
    assert held.weights_QK[1].tolist() == pytest.approx([7 / 3, 7 / 12, 7 / 6, 0])
    assert held.winners.tolist() == ["B", "B", None]
    assert held.election.share[0] == pytest.approx((7 / 3) / (7 / 3 + 2 * 7 / 12))


def test_distance_and_balance_multiply():
    held = ballot(VoteRules("distance", "cell_type"), {"cell_type": {"T": 90, "B": 10}})
    assert held.weights_QK[1].tolist() == pytest.approx([100 / 20, 0.5 * 100 / 180, 0, 0])


@given(st.integers(1, 1000), st.permutations(range(4)))
def test_equal_shares_are_no_balance_and_the_order_of_neighbours_does_not_matter(cells, order):
    plain = ballot(VoteRules())
    for column, values in (("cell_type", ["T", "B"]), ("dataset_id", ["x", "y", None])):
        found = ballot(VoteRules(balance_by=column), {column: dict.fromkeys(values, cells)})
        for name, figures in vars(plain.election).items():
            np.testing.assert_array_equal(getattr(found.election, name), figures)
    shuffled = hold_ballot(IDS[:, order], SCORES[:, order], LABELS, "cell_type", VoteRules("distance"), {})
    expected = ballot(VoteRules("distance"))
    for name, figures in vars(expected.election).items():
        np.testing.assert_array_equal(getattr(shuffled.election, name), figures)


def test_a_value_that_nobody_counted_is_refused():
    with pytest.raises(ReferenceSetError, match="a neighbour has y, which is none of the reference's 2 values"):
        ballot(VoteRules(balance_by="dataset_id"), {"dataset_id": {"x": 2, None: 2}})
    with pytest.raises(ReferenceSetError, match="a neighbour has None, which"):
        ballot(VoteRules(balance_by="dataset_id"), {"dataset_id": {"x": 2, "y": 2}})
    with pytest.raises(ReferenceSetError, match="keeps no label column 'tissue'"):
        ballot(VoteRules(balance_by="tissue"), {"tissue": {"blood": 5}})


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
        found, expected = ballot(rules, cells, labels=labels), ballot(rules, cells)
        assert found.names == expected.names
        np.testing.assert_array_equal(found.codes_QK, expected.codes_QK)
        np.testing.assert_array_equal(found.weights_QK, expected.weights_QK)


def test_nobody_asks_and_nobody_knows():
    assert ballot(VoteRules("distance"), ids=IDS[:0]).winners.tolist() == []
    nothing = pa.table({"soma_joinid": [1], "cell_type": pa.nulls(1, pa.string())})
    assert ballot(VoteRules(), ids=np.array([[1, -1, -1, -1]]), labels=nothing).winners.tolist() == [None]
    assert ballot(VoteRules(), ids=np.full((1, 4), -1), labels=LABELS.slice(0, 0)).winners.tolist() == [None]


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
        ballot(VoteRules(), ids=np.array([[neighbour, -1, -1, -1]]), labels=labels)
