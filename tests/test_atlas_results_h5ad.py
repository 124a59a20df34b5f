"""Results added to an .h5ad file: the same as in memory, with all that was there."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
from anndata.io import write_elem

from scgpt_ray.atlas.results_h5ad import ResultsH5ad
from scgpt_ray.pipelines.labelled_cells import (
    UNS,
    add_embeddings,
    add_predictions,
    mapping_note,
    own_columns,
    predicted_columns,
)

N = 7
INDEX = {"place": "index", "k": 3}
EMBEDDED = {"checkpoint": "demo", "coverage": {"fraction": 0.5}}


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    counts = scipy.sparse.csr_matrix(rng.poisson(1, (N, 4)).astype(np.float32))
    obs = pd.DataFrame({"kind": pd.Categorical(list("abacaba")), "n": np.arange(N)}, index=[f"c{i}" for i in range(N)])
    adata = anndata.AnnData(counts, obs, uns={"note": "mine"}, obsm={"X_umap": rng.random((N, 2))})
    adata.layers["columns"] = scipy.sparse.csc_matrix(counts)
    adata.raw = adata.copy()
    return adata


def predicted(column):
    reasons = [None, "far", *[None] * (N - 2)]
    return pa.table({
        "soma_joinid": np.arange(N),
        column: pa.array(["T", "Unknown", "B", "T", "T", "B", "T"]),
        f"{column}_unknown": pa.array(reasons, pa.string()),
        f"{column}_confidence": pa.array(np.linspace(0, 1, N, dtype=np.float32)),
    })  # fmt: skip


def added_to_file(path, table, column, vectors):
    with ResultsH5ad.at(path) as file:
        noted, columns = file.noted(UNS), predicted_columns(table, [column])
        file.add_obs(columns, own_columns(noted))
        file.set_obsm("X_scGPT", np.array_split(vectors, 3), N)
        file.note(UNS, {**noted, "version": "0", **EMBEDDED, **mapping_note(INDEX, columns)})


def test_a_file_gets_what_cells_in_memory_get_and_keeps_its_own(cells, tmp_path):
    """The second mapping drops the columns of the first, and replaces vectors of another width."""
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    for column, width in (("cell_type", 3), ("state", 5)):
        vectors = np.random.default_rng(width).random((N, width)).astype(np.float32)
        vectors[2] = np.nan
        added_to_file(path, predicted(column), column, vectors)
        add_embeddings(cells, vectors, EMBEDDED)
        add_predictions(cells, predicted(column), [column], INDEX)
        found = anndata.read_h5ad(path)
        pd.testing.assert_frame_equal(found.obs, cells.obs)
        np.testing.assert_array_equal(found.obsm["X_scGPT"], vectors)
        assert found.obsm["X_scGPT"].dtype == np.float32
        noted = found.uns[UNS]
        assert noted | {"columns": noted["columns"].tolist()} == cells.uns[UNS]
    assert list(found.obs) == ["kind", "n", *(f"predicted_state{part}" for part in ("", "_unknown", "_confidence"))]
    assert found.uns["note"] == "mine"
    np.testing.assert_array_equal(found.obsm["X_umap"], cells.obsm["X_umap"])
    assert (found.layers["columns"] != cells.layers["columns"]).nnz == 0
    assert found.layers["columns"].format == "csc"
    assert (found.raw.X != cells.raw.X).nnz == 0


def test_a_file_of_anndata_0_7_keeps_its_categories(cells, tmp_path):
    path = tmp_path / "old.h5ad"
    cells.write_h5ad(path)
    with h5py.File(path, "r+") as file:  # categories stood in a group of their own
        obs, kind = file["obs"], cells.obs["kind"].cat
        del obs["kind"]
        write_elem(obs.create_group("__categories"), "kind", np.array([*kind.categories], object))
        write_elem(obs, "kind", kind.codes.to_numpy())
        obs["kind"].attrs["categories"] = obs["__categories/kind"].ref
        obs.attrs["encoding-version"] = "0.1.0"
    added_to_file(path, predicted("cell_type"), "cell_type", np.ones((N, 2), np.float32))
    add_predictions(cells, predicted("cell_type"), ["cell_type"], INDEX)
    pd.testing.assert_frame_equal(anndata.read_h5ad(path).obs, cells.obs, check_names=False)


def test_blocks_are_as_many_rows_as_cells(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    blocks = [np.ones((N - 1, 2), np.float32)]
    with pytest.raises(AssertionError, match="6 rows of 7 cells"), ResultsH5ad.at(tmp_path / "cells.h5ad") as file:
        file.set_obsm("X_scGPT", blocks, N)
