"""Parquet files of embeddings made elsewhere: which cells and vectors are read, and what is refused."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.pipelines.embedding_sets import compared_cells
from scgpt_ray.pipelines.external_embeddings import external_vectors

CELLS = pa.table({"soma_joinid": [10, 12, 13], "obs_id": ["a", "c", "d"]})
IDS = pa.array([13, 10, 12])
LISTS = pa.array([[5.0, 6.0], [1.0, 2.0], [3.0, 4.0]])
VECTORS = [[1, 2], [3, 4], [5, 6]]


@pytest.fixture
def read(tmp_path):
    """Reads the vectors of cells from a file of these columns: read(cells, column=values, ...)."""

    def written(cells=CELLS, **columns):
        pq.write_table(pa.table(columns), tmp_path / "made.parquet")
        return external_vectors(str(tmp_path / "made.parquet"), cells)

    return written


@pytest.mark.parametrize(
    "columns",
    [
        {"soma_joinid": IDS, "embedding": LISTS},
        {"soma_joinid": IDS.cast(pa.uint16()), "embedding": LISTS.cast(pa.list_(pa.float32()))},
        {"embedding": LISTS.cast(pa.large_list(pa.float64())), "soma_joinid": IDS, "cell_type": ["B", None, "T"]},
        {"soma_joinid": IDS, "embedding": LISTS.cast(pa.list_(pa.float32(), 2)), "n_genes": [1, 2, 3]},
        {"soma_joinid": IDS, "x": pa.array([5.0, 1.0, 3.0]), "y": pa.array([6, 2, 4], pa.float32())},
        {"x": pa.array([5, 1, 3], pa.float16()), "soma_joinid": IDS, "y": pa.array([6.0, 2.0, 4.0])},
    ],
)
def test_vectors_by_joinid(read, columns):
    vectors = read(**columns)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == VECTORS


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_vectors_by_name(read, kind):
    names = pa.array(["d", "a", "c"])
    # Arrow does not cast to every kind of text.
    names = names.dictionary_encode() if pa.types.is_dictionary(kind) else names.cast(kind)
    assert read(obs_id=names, embedding=LISTS).tolist() == VECTORS
    assert read(obs_id=names, soma_joinid=IDS, embedding=LISTS).tolist() == VECTORS


def test_rows_of_other_cells_may_be_anything(read):
    ids, lists = [99, 13, None, 10, 12], [[np.nan], [5.0, 6.0], None, [1.0, 2.0], [3.0, 4.0]]
    assert read(soma_joinid=ids, embedding=lists).tolist() == VECTORS
    names = pa.table({"soma_joinid": [10, 12, 13]})
    assert read(names, soma_joinid=IDS, obs_id=["x", "y", "z"], embedding=LISTS).tolist() == VECTORS


@given(data=st.data(), n=st.integers(1, 40), rows_per_group=st.integers(1, 9), rows_at_once=st.integers(1, 9))
def test_each_cell_gets_its_row_whatever_the_groups(tmp_path_factory, data, n, rows_per_group, rows_at_once):
    path = tmp_path_factory.getbasetemp() / "groups.parquet"
    order = data.draw(st.permutations(range(n)))
    made = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    lists = pa.array(list(made[order]), pa.list_(pa.float32()))
    pq.write_table(pa.table({"soma_joinid": order, "embedding": lists}), path, row_group_size=rows_per_group)
    wanted = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scgpt_ray.pipelines.external_embeddings._ROWS_AT_ONCE", rows_at_once)
        found = external_vectors(str(path), pa.table({"soma_joinid": wanted}))
    np.testing.assert_array_equal(found, made[wanted])


def test_what_pandas_writes(tmp_path, monkeypatch):
    frame = pd.DataFrame({"x": [5.0, 1.0, 3.0], "y": [6.0, 2.0, 4.0]}, pd.Index(["d", "a", "c"], name="obs_id"))
    frame.to_parquet(tmp_path / "frame.parquet")
    assert external_vectors(str(tmp_path / "frame.parquet"), CELLS).tolist() == VECTORS
    assert external_vectors(f"file://{tmp_path}/frame.parquet", CELLS).tolist() == VECTORS
    monkeypatch.chdir(tmp_path)
    assert external_vectors("frame.parquet", CELLS).tolist() == VECTORS
    frame.rename_axis(None).to_parquet(tmp_path / "unnamed.parquet")
    with pytest.raises(ReferenceSetError, match=r"unnamed.parquet has neither soma_joinid nor obs_id; expected each"):
        external_vectors("unnamed.parquet", CELLS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"cell": IDS, "embedding": LISTS}, "has neither soma_joinid nor obs_id"),
        ({"soma_joinid": IDS}, "has no vector"),
        ({"soma_joinid": ["10", "x", "12"], "embedding": LISTS}, "cannot be read: ArrowInvalid"),
        ({"soma_joinid": pa.array([2**63, 1, 2], pa.uint64()), "embedding": LISTS}, "cannot be read: ArrowInvalid"),
        ({"soma_joinid": IDS, "embedding": [5.0, 1.0, 3.0]}, "cannot be read: ArrowNotImplementedError"),
        ({"soma_joinid": IDS, "embedding": [["a"], ["b"], ["c"]]}, "cannot be read: ArrowInvalid"),
        ({"soma_joinid": IDS, "x": [1.0, 2, 3], "kind": ["B", "T", "B"]}, "has a column kind of type string, and no"),
        ({"soma_joinid": IDS, "x": [1.0, 2, 3], "n": IDS}, "has a column n of type int64, and no column embedding"),
    ],
)
def test_columns_that_are_refused(read, columns, message):
    with pytest.raises(ReferenceSetError, match=re.escape(f"made.parquet {message}")):
        read(**columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"soma_joinid": [10, 11, 9]}, "made.parquet lacks 2 of 3 cells, such as soma_joinid 12"),
        ({"obs_id": ["a", "c", "D"]}, "made.parquet lacks 1 of 3 cells, such as obs_id d"),
        ({"soma_joinid": [10, 12, 10]}, "made.parquet has soma_joinid 10 in several rows"),
        ({"obs_id": ["c", "d", "c"]}, "made.parquet has obs_id c in several rows"),
        (
            {"soma_joinid": [10, 12, 13], "obs_id": ["a", "d", "c"]},
            "made.parquet has soma_joinid 12 as d, and the first set as c",
        ),
        ({"soma_joinid": [10, 12, 13], "obs_id": ["a", None, "d"]}, "has soma_joinid 12 as None, and the first set"),
    ],
)
def test_other_cells_are_refused(read, columns, message):
    with pytest.raises(ReferenceSetError, match=re.escape(message)):
        read(**columns, embedding=LISTS)


def test_names_that_do_not_tell_cells_apart(read):
    with pytest.raises(ReferenceSetError, match="names cells by obs_id, which the first set does not have"):
        read(CELLS.drop_columns("obs_id"), obs_id=["a", "c", "d"], embedding=LISTS)
    twice = CELLS.set_column(1, "obs_id", pa.array(["a", "c", "a"]))
    with pytest.raises(ReferenceSetError, match="the first set has obs_id a in several rows"):
        read(twice, obs_id=["a", "c", "d"], embedding=LISTS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"embedding": [[1.0, 2.0], None, [5.0, 6.0]]},
            "the cell with soma_joinid 12 has no vector, or",
        ),
        ({"embedding": [[1.0, 2.0], [], [5.0, 6.0]]}, "soma_joinid 12 has no vector, or one of another length"),
        ({"embedding": [None, [3.0, 4.0], [5.0, 6.0]]}, "soma_joinid 10 has no vector, or one of another length"),
        ({"embedding": [[], [], []]}, "soma_joinid 10 has no vector, or one of another length"),
        ({"embedding": [[1.0, 2.0], [3.0, 4.0], [5.0]]}, "soma_joinid 13 has no vector, or one of another length"),
        ({"embedding": [[1.0, 2.0], [3.0, None], [5.0, 6.0]]}, "soma_joinid 12 has a number that is null, NaN or inf"),
        ({"embedding": [[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]]}, "soma_joinid 12 has a number"),
        ({"embedding": [[1.0, 2.0], [3.0, 4.0], [5.0, 1e39]]}, "soma_joinid 13 has a number"),
        ({"x": [1.0, 2.0, 3.0], "y": [1.0, -np.inf, 3.0]}, "soma_joinid 12 has a number"),
        ({"x": [1.0, 2.0, None], "y": [1.0, 2.0, 3.0]}, "soma_joinid 13 has a number"),
    ],
)
def test_vectors_that_are_refused(read, columns, message):
    with pytest.raises(ReferenceSetError, match=re.escape(message)):
        read(soma_joinid=[10, 12, 13], **columns)


def test_files_that_are_none(tmp_path):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    cases = {
        "nowhere": "cannot be read: FileNotFoundError",
        "folder": "cannot be read: ",
        "torn": "cannot be read: ArrowInvalid",
    }
    for name, problem in cases.items():
        with pytest.raises(ReferenceSetError, match=rf"{name}\.parquet {problem}"):
            external_vectors(str(tmp_path / f"{name}.parquet"), CELLS)


def test_a_folder_and_its_own_vectors_as_a_file(make_embeddings, tmp_path):
    make_embeddings(tmp_path / "a")
    whole = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "a" / "parts").iterdir()))
    shuffled = whole.take(pa.array(np.random.default_rng(0).permutation(20)))
    pq.write_table(shuffled, tmp_path / "b.parquet", row_group_size=3)
    cells = compared_cells((str(tmp_path / "a"), str(tmp_path / "b.parquet")), ["kind"])
    assert list(cells.sets) == ["a", "b.parquet"]
    rows = np.array([0, 2, 7, 8, 19])
    np.testing.assert_array_equal(cells.sets["b.parquet"](rows), cells.sets["a"](rows))


def test_a_file_is_not_the_first(tmp_path):
    with pytest.raises(ConfigError, match=r"names the file .*b.parquet first; expected an output folder of embed"):
        compared_cells((str(tmp_path / "b.parquet"), str(tmp_path / "a")), [])
