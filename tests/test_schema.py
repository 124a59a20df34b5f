import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.schema import known_texts, matrix, matrix_array, obs_columns, ragged, ragged_array

LISTS = st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=5), max_size=8)


@given(lists=LISTS, start=st.integers(0, 8), cuts=st.lists(st.integers(0, 8), max_size=3))
def test_ragged_takes_any_slicing_and_chunking(lists, start, cuts):
    array = pa.array(lists, pa.list_(pa.uint16())).slice(start)
    edges = sorted({0, len(array), *(cut for cut in cuts if cut <= len(array))})
    chunks = [array.slice(lo, hi - lo) for lo, hi in itertools.pairwise(edges)]
    column = pa.chunked_array(chunks, type=array.type)
    offsets, values = ragged(column)
    assert offsets.dtype == np.int64
    assert [values[lo:hi].tolist() for lo, hi in itertools.pairwise(offsets)] == lists[start:]


@given(lists=LISTS)
def test_ragged_array_is_the_inverse(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    values = np.array([value for cell in lists for value in cell], np.uint16)
    assert ragged_array(offsets, values).to_pylist() == lists


def test_ragged_array_does_not_copy_the_values():
    values = np.arange(5, dtype=np.float32)
    assert ragged_array(np.array([0, 2, 5]), values).values.buffers()[1].address == values.ctypes.data


def test_one_chunk_is_not_copied():
    array = ragged_array(np.array([0, 2, 5]), np.arange(5, dtype=np.float32))
    _, values = ragged(pa.chunked_array([array]))
    assert values.ctypes.data == array.values.buffers()[1].address


def test_ragged_refuses_nulls():
    with pytest.raises(AssertionError, match="no nulls"):
        ragged(pa.array([[1], None], pa.list_(pa.uint8())))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_matrix_round_trip(n):
    values = np.arange(n * 4, dtype=np.float32).reshape(n, 4)
    np.testing.assert_array_equal(matrix(matrix_array(values)), values)
    np.testing.assert_array_equal(matrix(matrix_array(values).slice(1)), values[1:])


def test_matrix_array_marks_absent_rows():
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert matrix_array(values, np.array([False, True, False])).to_pylist() == [[0, 1], None, [4, 5]]


def test_obs_columns_are_all_but_ours():
    table = pa.table({"soma_joinid": [1], "obs_id": ["a"], "cell_type": ["B"], "n_genes": [3]})
    assert obs_columns(table) == ["obs_id", "cell_type"]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["B", None, "", "Unknown", " none ", "nan", "T cell"], pa.string(), ["B"] + [None] * 5 + ["T cell"]),
        ([1, None, 0], pa.int32(), ["1", None, "0"]),
        ([True, None, False], pa.bool_(), ["true", None, "false"]),
        ([1.5, float("nan"), None], pa.float64(), ["1.5", None, None]),
        ([None, None], pa.null(), [None, None]),
        (["a", None], pa.dictionary(pa.int8(), pa.string()), ["a", None]),
        (["a", "", "b", "a"], pa.large_string(), ["a", None, "b", "a"]),
        ([], pa.string(), []),
    ],
)
def test_labels_that_are_known(values, kind, expected):
    column = pa.chunked_array([pa.array(values, kind)])
    assert known_texts(column).to_pylist() == expected
