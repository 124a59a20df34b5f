import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.mapping.transfer import exclude, group_codes, transfer

BIG = 10**12
LABELS = pa.table(
    {
        "soma_joinid": pa.array([BIG + 3, 7, 5, 1], pa.int64()),
        "cell_type": pa.array(["T", None, "B", "T"]),
        "donor": pa.array(["d1", "d2", "d1", None]),
        "cluster": pa.array([10, 9, 9, 10], pa.int32()),
    }
)


def neighbours(*rows):
    ids = np.array(rows, np.int64)
    return ids, np.where(ids == -1, -np.inf, 0.5).astype(np.float32)


def test_labels_and_confidence_of_each_column():
    table = transfer(
        *neighbours([1, 5, BIG + 3], [7, 5, -1], [7, -1, -1], [-1, -1, -1]), LABELS, ["cell_type", "cluster"]
    )
    assert table.schema.names == ["cell_type", "cell_type_confidence", "cluster", "cluster_confidence"]
    assert table.schema.types == [pa.string(), pa.float32()] * 2
    assert table["cell_type"].to_pylist() == ["T", "B", "Unknown", "Unknown"]
    assert table["cell_type_confidence"].to_pylist() == [np.float32(2 / 3), 1.0, 0.0, 0.0]
    assert table["cluster"].to_pylist() == ["10", "9", "9", "Unknown"]
    assert table["cluster_confidence"].to_pylist() == [np.float32(2 / 3), 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "table",
    [
        LABELS.set_column(1, "cell_type", LABELS["cell_type"].dictionary_encode()),
        pa.concat_tables([LABELS.slice(0, 1), LABELS.slice(1, 0), LABELS.slice(1)]),
        pa.concat_tables([LABELS, LABELS]).slice(4, 4),
        LABELS.take(pa.array([2, 0, 3, 1])),
        LABELS.set_column(1, "cell_type", LABELS["cell_type"].cast(pa.large_string())),
        pa.concat_tables(
            [
                piece.set_column(1, "cell_type", piece["cell_type"].dictionary_encode())
                for piece in (LABELS.slice(0, 2), LABELS.slice(2))
            ]
        ),
    ],
    ids=["dictionary", "chunks", "slice", "order", "large_string", "two_dictionaries"],
)
def test_how_the_labels_lie_in_memory_does_not_matter(table):
    found = neighbours([1, 5, BIG + 3], [7, 5, -1], [5, 1, -1])
    assert transfer(*found, table, ["cell_type"]) == transfer(*found, LABELS, ["cell_type"])


def test_a_tie_goes_to_the_first_name_whatever_the_order_of_the_table():
    found = neighbours([1, 5])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        assert transfer(*found, LABELS.take(pa.array(order)), ["cell_type"])["cell_type"].to_pylist() == ["B"]


def test_no_queries_and_a_column_of_nulls():
    empty = transfer(np.empty((0, 3), np.int64), np.empty((0, 3), np.float32), LABELS, ["cell_type"])
    assert (empty.num_rows, empty.schema.types) == (0, [pa.string(), pa.float32()])
    nothing = pa.table({"soma_joinid": [1], "cell_type": pa.nulls(1, pa.string())})
    assert transfer(*neighbours([1]), nothing, ["cell_type"]).to_pylist() == [
        {"cell_type": "Unknown", "cell_type_confidence": 0.0}
    ]


def test_a_reference_without_rows_labels_nobody():
    assert transfer(*neighbours([-1, -1]), LABELS.slice(0, 0), ["cell_type"])["cell_type"].to_pylist() == ["Unknown"]


@pytest.mark.parametrize(
    ("ids", "labels", "column", "problem"),
    [
        ([2], LABELS, "cell_type", "neighbour 2 has no row"),
        ([BIG + 4], LABELS, "cell_type", "has no row"),
        ([1], pa.concat_tables([LABELS, LABELS.slice(1, 1)]), "cell_type", "two rows"),
        ([1], LABELS, "tissue", "'tissue'; expected one of: cell_type, donor, cluster"),
    ],
)
def test_a_broken_reference_is_refused(ids, labels, column, problem):
    with pytest.raises(ReferenceSetError, match=problem):
        transfer(*neighbours(ids), labels, [column])


def test_group_codes_match_texts_and_never_nulls():
    ids, _ = neighbours([BIG + 3, 7, 1, -1])
    queries = pa.chunked_array([["d2"], ["d1", None, "d3"]])
    neighbour_codes, query_codes = group_codes(ids, LABELS, "donor", queries)
    d1, d2 = query_codes[1], query_codes[0]
    assert neighbour_codes.tolist() == [[d1, d2, -1, -1]]
    assert query_codes[2] == -1
    assert len({d1, d2, query_codes[3], -1}) == 4


def test_group_codes_take_a_dictionary_on_either_side():
    ids, _ = neighbours([5, 7])
    plain = group_codes(ids, LABELS, "donor", pa.chunked_array([["d1", "d2"]]))
    encoded = LABELS.set_column(2, "donor", LABELS["donor"].dictionary_encode())
    for found, expected in zip(
        group_codes(ids, encoded, "donor", pa.chunked_array([["d1", "d2"]]).dictionary_encode()),
        plain,
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_exclude_keeps_the_first_k_of_other_groups():
    ids, scores = neighbours([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, -1, -1], [11, 12, 13, 14])
    scores[0] = [0.9, 0.8, 0.7, 0.6]
    groups = np.array([[0, 1, 0, 2], [1, 1, 1, 0], [2, 0, -1, -1], [-1, -1, -1, -1]], np.int32)
    found_ids, found_scores, short = exclude(ids, scores, groups, np.array([0, 1, 2, -1], np.int32), 2)
    assert found_ids.tolist() == [[2, 4], [8, -1], [10, -1], [11, 12]]
    assert found_scores[:2].tolist() == [[np.float32(0.8), np.float32(0.6)], [0.5, -np.inf]]
    assert short.tolist() == [1, 2]


@given(st.data(), st.integers(0, 6), st.integers(1, 8))
def test_exclude_agrees_with_a_loop(data, n_queries, k):
    width = k + data.draw(st.integers(0, 4))
    cells = st.lists(st.integers(-1, 3), min_size=n_queries * width, max_size=n_queries * width)
    groups = np.array(data.draw(cells), np.int32).reshape(n_queries, width)
    ids = np.arange(n_queries * width).reshape(n_queries, width)
    ids[:, ::-1][:, : data.draw(st.integers(0, width))] = -1
    own = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=n_queries, max_size=n_queries)), np.int32)
    scores = np.where(ids == -1, -np.inf, -ids / 64).astype(np.float32)
    found_ids, found_scores, short = exclude(ids, scores, groups, own, k)
    for query in range(n_queries):
        kept = [
            joinid
            for joinid, group in zip(ids[query].tolist(), groups[query].tolist(), strict=True)
            if joinid != -1 and (group == -1 or group != own[query])
        ][:k]
        assert found_ids[query].tolist() == kept + [-1] * (k - len(kept))
        assert found_scores[query].tolist() == [-joinid / 64 for joinid in kept] + [-np.inf] * (k - len(kept))
        assert (query in short) == (len(kept) < k)
