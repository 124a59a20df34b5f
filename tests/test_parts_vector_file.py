"""Parquet files of embeddings made elsewhere: what is read, and what is refused."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.parts.vector_file import VectorFile

IDS = pa.array([7, 3, 5])
LISTS = pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


@pytest.fixture
def write(tmp_path):
    def written(**columns):
        path = tmp_path / "made.parquet"
        pq.write_table(pa.table(columns), path)
        return str(path)

    return written


def vectors(place, rows):
    return np.concatenate(list(VectorFile.at(place).blocks(np.array(rows)))).tolist()


@pytest.mark.parametrize(
    "columns",
    [
        {"soma_joinid": IDS, "embedding": LISTS},
        {"soma_joinid": IDS.cast(pa.uint16()), "embedding": LISTS.cast(pa.list_(pa.float32()))},
        {"embedding": LISTS.cast(pa.large_list(pa.float64())), "soma_joinid": IDS, "cell_type": ["B", None, "T"]},
        {"soma_joinid": IDS, "embedding": LISTS.cast(pa.list_(pa.float32(), 2)), "n_genes": [1, 2, 3]},
        {"soma_joinid": IDS, "x": pa.array([1.0, 3.0, 5.0]), "y": pa.array([2, 4, 6], pa.float32())},
        {"y": pa.array([1, 3, 5], pa.float16()), "soma_joinid": IDS, "x": pa.array([2.0, 4.0, 6.0])},
    ],
)
def test_vectors_by_joinid(write, columns):
    file = VectorFile.at(write(**columns))
    keys = file.keys()
    assert keys.schema == pa.schema([("soma_joinid", pa.int64())])
    assert keys["soma_joinid"].to_pylist() == [7, 3, 5]
    (block,) = file.blocks(np.array([0, 2]))
    assert block.dtype == np.float32
    assert block.tolist() == [[1, 2], [5, 6]]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_names_of_cells(write, kind):
    names = pa.array(["c", "a", "b"])
    # Arrow does not cast to every kind of text.
    names = names.dictionary_encode() if pa.types.is_dictionary(kind) else names.cast(kind)
    file = VectorFile.at(write(obs_id=names, embedding=LISTS))
    assert file.keys().to_pydict() == {"obs_id": ["c", "a", "b"]}
    assert file.keys().schema.field("obs_id").type == pa.large_string()


def test_what_pandas_writes(tmp_path):
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]}, index=pd.Index(["a", "b"], name="obs_id"))
    frame.to_parquet(tmp_path / "frame.parquet")
    assert VectorFile.at(str(tmp_path / "frame.parquet")).columns == ("x", "y")
    assert vectors(str(tmp_path / "frame.parquet"), [0, 1]) == [[1, 3], [2, 4]]
    frame.rename_axis(None).to_parquet(tmp_path / "unnamed.parquet")
    with pytest.raises(ReferenceSetError, match="has neither soma_joinid nor obs_id"):
        VectorFile.at(str(tmp_path / "unnamed.parquet"))


def test_other_places(write, tmp_path, monkeypatch):
    place = write(soma_joinid=IDS, embedding=LISTS)
    assert vectors(f"file://{place}", [1]) == [[3, 4]]
    monkeypatch.chdir(tmp_path)
    assert VectorFile.at("made.parquet").place == place


@given(data=st.data(), n=st.integers(0, 40), rows_per_group=st.integers(1, 9), rows_at_once=st.integers(1, 9))
def test_blocks_are_the_rows_whatever_the_groups(tmp_path_factory, data, n, rows_per_group, rows_at_once):
    path = tmp_path_factory.getbasetemp() / "groups.parquet"
    made = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    table = pa.table({"soma_joinid": np.arange(n), "embedding": pa.array(list(made), pa.list_(pa.float32()))})
    pq.write_table(table, path, row_group_size=rows_per_group)
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)) if n else st.just(set()))), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scgpt_ray.parts.vector_file._ROWS_AT_ONCE", rows_at_once)
        blocks = list(VectorFile.at(str(path)).blocks(wanted))
    assert all(len(block) <= rows_at_once for block in blocks)
    np.testing.assert_array_equal(np.concatenate([*blocks, np.empty((0, 2))]), made[wanted])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"cell": IDS, "embedding": LISTS}, "has neither soma_joinid nor obs_id; expected soma_joinid (integer) or"),
        ({"soma_joinid": IDS}, "has no vector"),
        ({"soma_joinid": IDS.cast(pa.float64()), "embedding": LISTS}, "has a column soma_joinid of type double"),
        ({"obs_id": IDS, "embedding": LISTS}, "has a column obs_id of type int64"),
        ({"soma_joinid": IDS, "embedding": pa.array([[1], [2], [3]])}, "has a column embedding of type list<"),
        ({"soma_joinid": IDS, "embedding": pa.array([1.0, 2.0, 3.0])}, "has a column embedding of type double"),
        ({"soma_joinid": IDS, "x": pa.array([1.0, 2, 3]), "kind": ["B", "T", "B"]}, "has a column kind of type string"),
        ({"soma_joinid": IDS, "x": pa.array([1.0, 2, 3]), "n": IDS}, "has a column n of type int64"),
    ],
)
def test_columns_that_are_refused(write, columns, message):
    with pytest.raises(ReferenceSetError, match=re.escape(message)):
        VectorFile.at(write(**columns))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"soma_joinid": [7, 3, 7]}, "has 1 soma_joinid in several rows, such as 7; expected each soma_joinid once"),
        ({"obs_id": ["a", "b", "a"]}, "has 1 obs_id in several rows, such as a"),
        ({"soma_joinid": [7, None, None]}, "has 2 of 3 rows without soma_joinid; expected soma_joinid in every row"),
        ({"soma_joinid": pa.array([2**63, 1, 2], pa.uint64())}, "cannot be read"),
    ],
)
def test_ids_that_are_refused(write, columns, message):
    file = VectorFile.at(write(**columns, embedding=LISTS))
    with pytest.raises(ReferenceSetError, match=re.escape(message)):
        file.keys()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"embedding": [[1.0, 2.0], None, [5.0, 6.0]]}, "the cell with soma_joinid 3 has no vector"),
        ({"embedding": [[1.0, 2.0], [], [5.0, 6.0]]}, "soma_joinid 3 has no vector"),
        ({"embedding": [None, [3.0, 4.0], [5.0, 6.0]]}, "soma_joinid 7 has no vector"),
        ({"embedding": [[1.0, 2.0], [3.0, 4.0], [5.0]]}, "soma_joinid 5 has a vector of other than 2 numbers"),
        ({"embedding": [[1.0, 2.0], [3.0, None], [5.0, 6.0]]}, "soma_joinid 3 has a number that is null, NaN or infin"),
        ({"embedding": [[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]]}, "soma_joinid 3 has a number"),
        ({"embedding": [[1.0, 2.0], [3.0, 4.0], [5.0, 1e39]]}, "soma_joinid 5 has a number"),
        ({"x": [1.0, 2.0, 3.0], "y": [1.0, -np.inf, 3.0]}, "soma_joinid 3 has a number"),
        ({"x": [1.0, 2.0, None], "y": [1.0, 2.0, 3.0]}, "soma_joinid 5 has a number"),
    ],
)
@pytest.mark.parametrize("rows_at_once", [1, 8192])
def test_vectors_that_are_refused(write, monkeypatch, columns, message, rows_at_once):
    monkeypatch.setattr("scgpt_ray.parts.vector_file._ROWS_AT_ONCE", rows_at_once)
    place = write(soma_joinid=IDS, **columns)
    with pytest.raises(ReferenceSetError, match=re.escape(message)):
        vectors(place, [0, 1, 2])


def test_rows_that_are_not_asked_for_may_be_anything(write):
    place = write(soma_joinid=IDS, embedding=[[1.0, 2.0], None, [np.nan]])
    assert vectors(place, [0]) == [[1, 2]]


def test_files_that_are_none(tmp_path):
    with pytest.raises(ReferenceSetError, match=r"nowhere.parquet: no such file"):
        VectorFile.at(str(tmp_path / "nowhere.parquet"))
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ReferenceSetError, match=r"folder.parquet: no such file"):
        VectorFile.at(str(tmp_path / "folder.parquet"))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(ReferenceSetError, match=r"torn.parquet cannot be read"):
        VectorFile.at(str(tmp_path / "torn.parquet"))
