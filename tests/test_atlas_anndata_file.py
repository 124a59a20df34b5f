"""AnnData files in and out."""

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.atlas.anndata_file import OBSM_KEY, AnnData, read_anndata, write_embedding_h5ad
from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, matrix_array


def embeddings(absent=(False, False), **columns):
    return pa.table({
        JOINID: pa.array([4, 7]),
        **columns,
        N_GENES: pa.array([3, 3], pa.int32()),
        EMBEDDING: matrix_array(np.eye(2, dtype=np.float32), np.array(absent)),
    })  # fmt: skip


def written(path, table):
    write_embedding_h5ad(path, table)
    return read_anndata(path)


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


def test_a_whole_file_is_read(blood, blood_file):
    cells = read_anndata(blood_file)
    assert isinstance(cells, AnnData)
    assert (cells.X != blood.X).nnz == 0


def torn(blood_file, tmp_path):
    (tmp_path / "torn.h5ad").write_bytes(blood_file.read_bytes()[:2000])
    return tmp_path / "torn.h5ad"


def text(blood_file, tmp_path):
    (tmp_path / "text.h5ad").write_text("cells")
    return tmp_path / "text.h5ad"


@pytest.mark.parametrize("make", [torn, text, lambda _, folder: folder / "absent.h5ad"])
def test_what_is_no_h5ad_file_is_refused(blood_file, tmp_path, make):
    path = make(blood_file, tmp_path)
    with pytest.raises(AtlasError, match=rf"{path}: .*; expected a complete .h5ad file"):
        read_anndata(path)
