"""The table of predictions has a row for each query cell, and the query's columns under free names."""

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.mapping.prediction import SUFFIXES
from scgpt_ray.pipelines.prediction_table import output_name, predictions_of
from scgpt_ray.schema import EMBEDDING, matrix_array, ragged_array


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("donor", "donor"),
        ("cell_type", "cell_type_query"),
        ("cell_type_confidence", "cell_type_confidence_query"),
        ("cell_type_rolled_up_share", "cell_type_rolled_up_share_query"),
        ("cell_type_query", "cell_type_query"),
    ],
)
def test_names_of_query_columns(column, name):
    assert output_name(column, ["cell_type"]) == name


def test_cells_without_an_embedding_are_unknown_in_every_column():
    floats = {"_confidence", "_probability", "_runner_up_share", "_rolled_up_share"}
    columns = {"t": pa.array(["T", "Unknown"])}
    for suffix in SUFFIXES:
        columns[f"t{suffix}"] = pa.array([0.5, 0.25], pa.float32()) if suffix in floats else pa.array(["x", None])
    columns["neighbor"] = ragged_array(np.array([0, 1, 1]), np.array([7]))
    columns["score"] = ragged_array(np.array([0, 1, 1]), np.array([0.5], np.float32))
    queries = pa.table(
        {
            "soma_joinid": [3, 4, 5, 6],
            "t": ["own"] * 4,
            EMBEDDING: matrix_array(np.ones((4, 2), np.float32), np.array([True, False, True, False])),
        }
    )
    table = predictions_of(queries, pa.table(columns), ["t"])
    assert table.column_names == ["soma_joinid", "t_query", *columns]
    assert table["soma_joinid"].to_pylist() == [3, 4, 5, 6]
    rows = table.drop_columns(["soma_joinid", "t_query"]).to_pylist()
    assert [rows[1], rows[3]] == pa.table(columns).to_pylist()
    unmapped = {f"t{suffix}": 0.0 if suffix in floats else None for suffix in SUFFIXES}
    unmapped |= {"t": "Unknown", "t_rolled_up": "Unknown", "t_rolled_up_label": "Unknown", "t_unknown": "no embedding"}
    assert rows[0] == rows[2] == unmapped | {"neighbor": [], "score": []}
    assert predictions_of(queries.slice(0, 0), pa.table(columns).slice(0, 0), ["t"]).schema == table.schema
