"""The columns of predictions: those of `predictions.parquet`, and what is read from them."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.mapping.prediction import SUFFIXES, UNKNOWN
from scgpt_ray.schema import EMBEDDING, JOINID, obs_columns

NO_EMBEDDING = "no embedding"
"""Reason for `Unknown` of a cell without tokens."""
SHARE, PROBABILITY = "share of the votes", "probability of being right"
"""The two kinds of confidence."""


def confidences(predictions: pa.Table, column: str) -> dict[str, np.ndarray[Any, Any]]:
    """Kind of confidence -> confidence of each cell in a label column, [n]; the probability, if any, comes last."""
    named = {SHARE: f"{column}_confidence", PROBABILITY: f"{column}_probability"}
    return {
        meaning: predictions[name].to_numpy() for meaning, name in named.items() if name in predictions.column_names
    }


def voted(predictions: pa.Table, column: str) -> npt.NDArray[np.object_]:
    """The label with most votes, even if it was rejected; `Unknown` if there was no vote; str [n]."""
    return texts(predictions[f"{column}_voted"], UNKNOWN)


def texts(values: pa.ChunkedArray, null: str | None = None) -> npt.NDArray[np.object_]:
    """Texts of a column, [n]; equal ones are one object. `null` stands for nulls."""
    encoded = values.cast(pa.string()).combine_chunks().dictionary_encode()
    names: npt.NDArray[np.object_] = np.array([*encoded.dictionary.to_pylist(), null], object)
    return np.asarray(names[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)])


def overview_columns(columns: Sequence[str], calibrated: Collection[str]) -> list[str]:
    """Columns of the predictions that the result is made from."""
    said = (("", "_unknown", "_confidence", *(["_probability"] if column in calibrated else [])) for column in columns)
    each = [f"{column}{suffix}" for column, suffixes in zip(columns, said, strict=True) for suffix in suffixes]
    return [*each, f"{columns[0]}_voted"]


def output_name(column: str, predicted: Collection[str]) -> str:
    """Name of a column of the query in a table with predicted labels: `<name>_query` where it is theirs too."""
    taken = {*predicted, *(f"{name}{suffix}" for name in predicted for suffix in SUFFIXES)}
    return f"{column}_query" if column in taken else column


def predictions_of(queries: pa.Table, predicted: pa.Table, columns: Sequence[str]) -> pa.Table:
    """All query cells with their labels; `Unknown` for those without an embedding, which cannot be searched.

    Args:
        queries: EMBEDDINGS of the query.
        predicted: Result of `predict`, one row per cell with an embedding.
        columns: Label columns.

    Returns:
        soma_joinid, the obs columns of the query under their `output_name`, and the columns of `predicted`. A cell
        without an embedding has the reason `no embedding`, no vote, and 0 for shares and probabilities.
    """
    present = queries[EMBEDDING].is_valid().to_numpy()
    row_of_cell = np.where(present, np.cumsum(present) - 1, predicted.num_rows)
    carried = {output_name(name, columns): queries[name] for name in obs_columns(queries)}
    rows = pa.concat_tables([predicted, _without_embedding(predicted.schema, columns)]).combine_chunks()
    labels = rows.take(pa.array(row_of_cell))
    return pa.table({JOINID: queries[JOINID], **carried, **{name: labels[name] for name in labels.column_names}})


def _without_embedding(schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """The one row of all cells without an embedding."""
    texts = {f"{column}{part}": UNKNOWN for column in columns for part in ("", "_rolled_up", "_rolled_up_label")}
    texts |= {f"{column}_unknown": NO_EMBEDDING for column in columns}
    row: dict[str, Any] = dict(texts)
    row |= {field.name: 0.0 for field in schema if pa.types.is_floating(field.type)}
    row |= {field.name: [] for field in schema if pa.types.is_list(field.type)}
    return pa.Table.from_pylist([row], schema=schema)
