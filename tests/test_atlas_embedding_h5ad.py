"""Embeddings written as .h5ad, table by table, and read back by anndata."""

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from scgpt_ray.atlas import embedding_h5ad
from scgpt_ray.atlas.embedding_h5ad import OBSM_KEY, write_embedding_h5ad
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, matrix_array


def embeddings(absent=(False, False), **columns):
    return pa.table({
        JOINID: pa.array([4, 7]),
        **columns,
        N_GENES: pa.array([3, 3], pa.int32()),
        EMBEDDING: matrix_array(np.eye(2, dtype=np.float32), np.array(absent)),
    })  # fmt: skip


def written(path, *tables, **options):
    """What anndata reads of a file in which the tables follow each other."""
    n_cells = write_embedding_h5ad(path, lambda _: tables, **options)
    assert n_cells == sum(table.num_rows for table in tables)
    return anndata.read_h5ad(path)


def test_cells_without_a_name_go_by_their_joinid(tmp_path):
    cells = written(tmp_path / "cells.h5ad", embeddings())
    assert cells.obs_names.tolist() == ["4", "7"]
    assert cells.obs.to_dict("list") == {JOINID: [4, 7], N_GENES: [3, 3]}


@pytest.mark.parametrize("absent", [(False, False), (True, False), (True, True)])
def test_absent_embeddings_are_nan(tmp_path, absent):
    vectors = written(tmp_path / "cells.h5ad", embeddings(absent)).obsm[OBSM_KEY]
    assert (vectors.dtype, vectors.shape) == (np.float32, (2, 2))
    assert np.isnan(vectors).all(axis=1).tolist() == list(absent)
    present = ~np.array(absent)
    np.testing.assert_array_equal(vectors[present], np.eye(2)[present])


NOON = np.datetime64("2020-01-01T12:00:00", "us")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array(["B", "T"]), ["B", "T"]),
        (pa.array(["B", None]), ["B", None]),
        (pa.array([None, None], pa.string()), [None, None]),
        (pa.array(["T", "B"]).dictionary_encode(), ["T", "B"]),
        (pa.array([1, 2], pa.int8()), [1, 2]),
        (pa.array([1, None], pa.int32()), [1.0, None]),
        (pa.array([True, False]), [True, False]),
        (pa.array([True, None]), ["true", None]),
        (pa.array([0.5, None]), [0.5, None]),
        (pa.array([NOON, None], pa.timestamp("us")), ["2020-01-01 12:00:00.000000", None]),
        (pa.array([18262, None], pa.int32()).cast(pa.date32()), ["2020-01-01", None]),
        (pa.array([b"x", None], pa.binary()), ["x", None]),
    ],
)
def test_every_type_of_column_is_written(tmp_path, column, values):
    found = written(tmp_path / "cells.h5ad", embeddings(column=column)).obs["column"]
    assert [None if value != value else value for value in found.astype(object)] == values


def test_no_cells(tmp_path):
    assert written(tmp_path / "cells.h5ad", embeddings(kind=pa.array(["B", "T"])).slice(0, 0)).n_obs == 0


def plain(tables):
    """The same by anndata, from one table in memory."""
    table = pa.concat_tables([table.unify_dictionaries() for table in tables], promote_options="permissive")
    columns = {name: table[name] for name in table.column_names if name not in (JOINID, N_GENES, EMBEDDING, "obs_id")}
    stored = {name: as_stored(column) for name, column in columns.items()}
    obs = pa.table(stored).to_pandas().assign(**{name: table[name].to_numpy() for name in (JOINID, N_GENES)})
    obs.index = pd.Index(table["obs_id"].to_pylist(), dtype=object)
    vectors = [[np.nan, np.nan] if vector is None else vector for vector in table[EMBEDDING].to_pylist()]
    return anndata.AnnData(obs=obs, obsm={OBSM_KEY: np.array(vectors, np.float32)})


def as_stored(column):
    kind = column.type
    is_plain = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    is_plain = is_plain or (pa.types.is_boolean(kind) and not column.null_count)
    return column if is_plain else column.cast(pa.string()).dictionary_encode()


def random_tables(n_tables, seed):
    """Tables of 0 to 40 cells with columns of all kinds; which values are null differs from table to table."""
    random = np.random.default_rng(seed)
    first = 0
    for number in range(n_tables):
        n_cells = int(random.integers(0, 40)) if number else 7
        rows, first = np.arange(first, first + n_cells), first + n_cells
        null = random.random(n_cells) < 0.3 * (number % 2)
        texts = [f"type {value}" for value in random.integers(0, 9 + 60 * number, n_cells)]
        yield pa.table({
            JOINID: pa.array(rows),
            "obs_id": [f"cell-{row}" for row in rows],
            "kind": pa.array(texts, pa.string(), mask=null),
            "tissue": pa.array(texts).dictionary_encode(),
            "age": pa.array(random.integers(0, 9, n_cells), pa.int16(), mask=null),
            "dose": pa.array(random.random(n_cells, np.float32), mask=null),
            "primary": pa.array(random.random(n_cells) < 0.5),
            "smoker": pa.array(random.random(n_cells) < 0.5, mask=null),
            N_GENES: pa.array(np.where(null, 0, 3), pa.int32()),
            EMBEDDING: matrix_array(random.standard_normal((n_cells, 2)).astype(np.float32), null),
        })  # fmt: skip


@pytest.mark.parametrize("n_tables", [1, 2, 9])
def test_it_equals_what_anndata_writes_of_all_cells(n_tables, tmp_path):
    tables = list(random_tables(n_tables, n_tables))
    found = written(tmp_path / "streamed.h5ad", *tables)
    plain(tables).write_h5ad(tmp_path / "plain.h5ad")
    expected = anndata.read_h5ad(tmp_path / "plain.h5ad")
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    np.testing.assert_array_equal(found.obsm[OBSM_KEY], expected.obsm[OBSM_KEY])
    assert found.shape == expected.shape
    assert found.var.equals(expected.var)


@pytest.mark.parametrize("last", ["z", None])
def test_many_distinct_texts_are_no_categories(last, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_h5ad, "_MOST_CATEGORIES", 3)
    names = (pa.array(["a", "b"]), pa.array(["c", "d"]), pa.array(["a", last], pa.string()))
    tables = [
        embeddings(name=column, kind=pa.array(["B", "T"]), obs_id=pa.array([f"{place}0", f"{place}1"]))
        for place, column in enumerate(names)
    ]
    obs = written(tmp_path / "cells.h5ad", *tables).obs
    assert [None if value is pd.NA else value for value in obs["name"]] == ["a", "b", "c", "d", "a", last]
    assert (obs["name"].dtype == "category", obs["kind"].dtype == "category") == (False, True)


def test_half_precision(tmp_path):
    random = np.random.default_rng(1)
    vectors = random.standard_normal((2, 2)).astype(np.float32)
    table = embeddings().set_column(2, EMBEDDING, matrix_array(vectors))
    found = written(tmp_path / "cells.h5ad", table, half=True).obsm[OBSM_KEY]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, vectors.astype(np.float16))
