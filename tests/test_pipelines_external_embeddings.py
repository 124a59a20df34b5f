"""Embeddings made elsewhere, joined to the cells of a first set."""

import logging
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.pipelines.embedding_sets import compared_cells
from scgpt_ray.pipelines.external_embeddings import GivenSet

CELLS = pa.table({
    "soma_joinid": [10, 11, 12, 13],
    "n_genes": pa.array([5, 0, 5, 5], pa.int32()),
    "obs_id": ["a", "b", "c", "d"],
})  # fmt: skip
"""b has no embedding."""


@pytest.fixture
def join(tmp_path):
    def joined(cells=CELLS, **columns):
        path = tmp_path / "made.parquet"
        n = len(next(iter(columns.values())))
        values = columns.pop("x", np.arange(n, dtype=np.float64) + 1)
        pq.write_table(pa.table({**columns, "x": values}), path)
        return GivenSet.joined("made", str(path), cells)

    return joined


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ({"soma_joinid": [10, 12, 13]}, [0, -1, 1, 2]),
        ({"soma_joinid": [13, 10, 12]}, [1, -1, 2, 0]),
        ({"soma_joinid": [13, 11, 10, 12]}, [2, -1, 3, 0]),
        ({"soma_joinid": [99, 13, 10, 12, -5]}, [2, -1, 3, 1]),
        ({"obs_id": ["d", "a", "z", "c"]}, [1, -1, 3, 0]),
        ({"obs_id": ["d", "a", "c"], "soma_joinid": [13, 10, 12]}, [1, -1, 2, 0]),
    ],
)
def test_each_cell_finds_its_row(join, columns, rows):
    given = join(**columns)
    assert given.row_N.tolist() == rows
    for cells in ([0], [2, 3], [0, 2, 3]):
        assert given.vectors(np.array(cells)).tolist() == [[rows[cell] + 1] for cell in cells]


def test_rows_of_other_cells_are_told(join, caplog):
    with caplog.at_level(logging.INFO):
        join(soma_joinid=[10, 11, 12, 13, 99])
    assert "2 of 5 rows are of other cells and left out" in caplog.text
    caplog.clear()
    join(soma_joinid=[10, 12, 13])
    assert not caplog.records


def test_the_vectors_of_all_joined_cells_are_checked(join):
    given = join(soma_joinid=[10, 12, 13, 11], x=[1.0, 2.0, np.nan, np.nan])
    with pytest.raises(ReferenceSetError, match="the cell with soma_joinid 13 has a number that is null, NaN or inf"):
        given.vectors(np.array([0, 2]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"soma_joinid": [10, 11]},
            "lacks 2 of the 3 embedded cells of the first set, such as soma_joinid 12; expected a vector for each",
        ),
        ({"obs_id": ["a", "c", "D"]}, "lacks 1 of the 3 embedded cells of the first set, such as obs_id d"),
        ({"soma_joinid": pa.array([], pa.int64())}, "lacks 3 of the 3"),
        ({"soma_joinid": [10, 12, 13, 10]}, "has 1 soma_joinid in several rows, such as 10"),
        (
            {"soma_joinid": [10, 12, 13], "obs_id": ["a", "d", "c"]},
            "has soma_joinid 12 as d, and the first set as c; expected the same cell under a soma_joinid",
        ),
        ({"soma_joinid": [10, 12, 13], "obs_id": ["a", None, "d"]}, "has soma_joinid 12 as None"),
    ],
)
def test_other_cells_are_refused(join, columns, message):
    with pytest.raises(ReferenceSetError, match=re.escape(message)):
        join(**columns)


def test_names_that_do_not_tell_cells_apart(join):
    nameless = CELLS.drop_columns("obs_id")
    with pytest.raises(ReferenceSetError, match="names cells by obs_id, which the first set does not have"):
        join(nameless, obs_id=["a", "c", "d"])
    assert join(nameless, obs_id=["x", "y", "z"], soma_joinid=[10, 12, 13]).row_N.tolist() == [0, -1, 1, 2]
    twice = CELLS.set_column(2, "obs_id", pa.array(["a", "b", "a", "d"]))
    with pytest.raises(ReferenceSetError, match="names cells by obs_id, which is not unique in the first set"):
        join(twice, obs_id=["a", "c", "d"])


def test_a_folder_and_its_own_vectors_as_a_file(make_embeddings, tmp_path):
    make_embeddings(tmp_path / "a")
    whole = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "a" / "parts").iterdir()))
    shuffled = whole.take(pa.array(np.random.default_rng(0).permutation(20)))
    pq.write_table(shuffled, tmp_path / "b.parquet", row_group_size=3)
    cells = compared_cells((str(tmp_path / "a"), str(tmp_path / "b.parquet")), ["kind"])
    assert [each.name for each in cells.sets] == ["a", "b.parquet"]
    rows = np.array([0, 2, 7, 8, 19])
    np.testing.assert_array_equal(cells.sets[1].vectors(rows), cells.sets[0].vectors(rows))


def test_a_file_is_not_the_first(tmp_path):
    with pytest.raises(ConfigError, match=r"names the file .*b.parquet first; expected an output folder of embed"):
        compared_cells((str(tmp_path / "b.parquet"), str(tmp_path / "a")), [])
