"""Query cells in the plane, without a search."""

import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.pipelines.map_cells import _mean_score, drawn_cells
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, matrix_array, ragged_array

REMOTE = SimpleNamespace(folder=SimpleNamespace(is_local=False))


def cells(n, absent=()):
    rng = np.random.default_rng(0)
    is_absent = np.isin(np.arange(n), absent)
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    queries = pa.table({JOINID: np.arange(n), EMBEDDING: matrix_array(vectors, is_absent)})
    predictions = pa.table({"kind": [f"type {number % 2}" for number in range(n)]})
    parts = SimpleNamespace(
        rows=lambda rows: queries.take(pa.array(rows)), predicted_rows=lambda rows: predictions.take(pa.array(rows))
    )
    overview = predictions.append_column(N_GENES, pa.array(np.where(is_absent, 0, 5)))
    sampled = SimpleNamespace(rows=np.arange(n), sample=overview)
    return SimpleNamespace(column="kind", labels={"kind": {}}, overview=sampled, parts=parts), REMOTE


def test_too_few_cells_are_told():
    pytest.importorskip("umap", reason="needs umap-learn")
    assert drawn_cells(*cells(17, absent=(3, 5))) == (
        "No cells are drawn: 15 cells for a UMAP; expected at least 16; use more cells."
    )
    assert drawn_cells(*cells(2, absent=(0, 1))) == "No cells are drawn: no query cell has an embedding."


def test_without_bokeh_no_cells_are_drawn(monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    assert "package that is not installed: bokeh; expected bokeh; pip install" in drawn_cells(*cells(40))


def test_only_cells_with_an_embedding_are_drawn():
    pytest.importorskip("umap", reason="needs umap-learn")
    drawn = drawn_cells(*cells(40, absent=(3, 5)))
    assert drawn.rows.tolist() == [number for number in range(40) if number not in (3, 5)]
    assert drawn.coordinates_N2.shape == (38, 2)
    assert (drawn.reference.num_rows, drawn.reference.column_names) == (0, ["kind"])
    assert drawn.figure.axes[0].get_title("left") == "Predicted kind, 38 cells"


def test_mean_scores_are_those_of_a_cells_own_neighbours():
    scores = pa.table({"score": ragged_array(np.array([0, 2, 2, 5]), np.array([1, 0.5, 0.9, 0.6, 0.3], np.float32))})
    np.testing.assert_allclose(_mean_score(scores), [0.75, np.nan, 0.6])
