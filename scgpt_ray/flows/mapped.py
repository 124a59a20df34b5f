"""The result of a mapping: judged where the truth is known, and written for people and programs."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scgpt_ray.config import MapSettings
from scgpt_ray.evaluate.labels import LabelScores, confidence_by_outcome, score_labels
from scgpt_ray.evaluate.plots import confidence_histogram, confusion_heatmap, label_counts
from scgpt_ray.evaluate.report import Picture, map_report
from scgpt_ray.folder import Folder
from scgpt_ray.index.description import IndexDescription
from scgpt_ray.mapping.transfer import UNKNOWN
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, obs_columns
from scgpt_ray.store.export import write_h5ad
from scgpt_ray.store.manifest import Manifest

PREDICTIONS, QUERY_H5AD, METRICS, REPORT = "predictions.parquet", "query.h5ad", "metrics.json", "report.html"
_CONFIDENCE = "_confidence"
_LABELS_SHOWN = 6


@dataclass(frozen=True)
class Mapped:
    """What became of the query cells.

    Attributes:
        output: Folder of the files.
        predictions: One row per query cell, as `predictions_of` gives them.
        labels: Label column -> label -> cells, most first; the first column is the one that is judged.
        truth: True label of each query cell, where a truth column is named.
        scores: Agreement with the truth in the first column, likewise.
    """

    output: Folder
    predictions: pa.Table
    labels: dict[str, dict[str, int]]
    truth: list[str | None] | None
    scores: LabelScores | None

    @property
    def column(self) -> str:
        """The first label column."""
        return next(iter(self.labels))

    @property
    def n_cells(self) -> int:
        """Query cells."""
        return int(self.predictions.num_rows)

    @property
    def n_unknown(self) -> int:
        """Query cells without a label in the first column."""
        return self.labels[self.column].get(UNKNOWN, 0)

    def text(self) -> str:
        """A few lines for a person."""
        most = list(self.labels[self.column].items())
        shown = ", ".join(f"{name} {count}" for name, count in most[:_LABELS_SHOWN])
        more = ", ..." if len(most) > _LABELS_SHOWN else ""
        lines = [f"{self.n_cells} cells mapped on {self.column} ({shown}{more}): {self.output.where(REPORT)}"]
        if self.scores is not None:
            lines.append(self.scores.table())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The main figures for a program."""
        main = ("accuracy", "macro_f1", "majority_accuracy", "n")
        scores = self.scores.to_dict() if self.scores else None
        return {
            "output": self.output.uri,
            "n_cells": self.n_cells,
            "n_unknown": self.n_unknown,
            "scores": {name: scores[name] for name in main} if scores else None,
        }

    def metrics(self) -> dict[str, Any]:
        """All figures: the content of metrics.json."""
        return self.to_dict() | {
            "labels": self.labels,
            "scores": self.scores.to_dict() if self.scores else None,
        }


def own_name(column: str, predicted: Collection[str]) -> str:
    """Name that a column of the query gets beside predicted labels: `<name>_query` where it is theirs too."""
    taken = {*predicted, *(f"{name}{_CONFIDENCE}" for name in predicted)}
    return f"{column}_query" if column in taken else column


def predictions_of(queries: pa.Table, voted: pa.Table, columns: list[str]) -> pa.Table:
    """All query cells with their labels; `Unknown` for those without an embedding, which nobody could search for.

    Args:
        queries: EMBEDDINGS of the query.
        voted: `<column>` and `<column>_confidence`, a row for each cell that has an embedding.
        columns: Label columns.

    Returns:
        soma_joinid, the carried columns of the query under their `own_name`, and the columns of `voted`.
    """
    present = queries[EMBEDDING].is_valid().to_numpy()
    row_of_cell = pa.array(np.cumsum(present) - 1, mask=~present)
    carried = {own_name(name, columns): queries[name] for name in obs_columns(queries)}
    labels = {
        name: pc.fill_null(voted[name].take(row_of_cell), UNKNOWN if pa.types.is_string(voted[name].type) else 0.0)
        for name in voted.column_names
    }
    return pa.table({JOINID: queries[JOINID], **carried, **labels})


def judge(
    settings: MapSettings, queries: pa.Table, predictions: pa.Table, columns: list[str], reference_labels: set[str]
) -> Mapped:
    """Count the labels, and compare them with the truth where it is known.

    Args:
        settings: With the place of the files, and with the truth column or None.
        queries: The query cells, with the truth column.
        predictions: Their labels.
        columns: Label columns.
        reference_labels: Labels that the reference has in the first of them.

    Raises:
        InputError: If the truth of no cell is known.
    """
    truth = scores = None
    if settings.truth_column is not None:
        truth = queries[settings.truth_column].cast(pa.string()).to_pylist()
        predicted, confidence = predictions[columns[0]], predictions[columns[0] + _CONFIDENCE]
        scores = score_labels(truth, predicted.to_pylist(), confidence.to_numpy(), reference_labels)
    counts = {column: _counts(predictions[column]) for column in columns}
    return Mapped(Folder.at(settings.output), predictions, counts, truth, scores)


def _counts(labels: pa.ChunkedArray) -> dict[str, int]:
    counted = sorted(labels.value_counts().to_pylist(), key=lambda entry: (-entry["counts"], entry["values"]))
    return {entry["values"]: entry["counts"] for entry in counted}


def write_mapped(
    mapped: Mapped, settings: MapSettings, index: IndexDescription, manifest: Manifest, queries: pa.Table
) -> None:
    """Write predictions.parquet, query.h5ad, metrics.json and report.html."""
    sink = pa.BufferOutputStream()
    pq.write_table(mapped.predictions, sink, compression="zstd")
    mapped.output.write(PREDICTIONS, sink.getvalue())
    labelled = mapped.predictions
    for name in (N_GENES, EMBEDDING):
        labelled = labelled.append_column(name, queries[name])
    write_h5ad(mapped.output, QUERY_H5AD, labelled)
    mapped.output.write(METRICS, json.dumps(mapped.metrics(), indent=1).encode())
    title = f"{_stem(settings.query)} mapped onto {_stem(settings.index)}"
    report = map_report(title, _facts(settings, index, manifest, mapped), _pictures(mapped), mapped.scores)
    mapped.output.write(REPORT, report.encode())


def _facts(settings: MapSettings, index: IndexDescription, manifest: Manifest, mapped: Mapped) -> dict[str, object]:
    return {
        "query": settings.query,
        "query cells": mapped.n_cells,
        "without tokens": manifest.n_empty,
        "counts covered by the vocabulary": f"{manifest.coverage['fraction']:.1%}",
        "reference": index.embeddings,
        "reference cells": index.n_cells,
        "index": f"{index.factory}, nprobe {index.nprobe}, recall@10 {index.recall_at_10:.4f} "
        f"on {index.recall_queries} cells",
        "neighbours that vote": settings.k,
        "neighbours left out": f"those with the same {settings.exclude_same}" if settings.exclude_same else "none",
        "checkpoint": f"{settings.checkpoint} (sha256 {manifest.fingerprint.model['weights'][:12]})",
        "label columns": ", ".join(mapped.labels),
    }


def _pictures(mapped: Mapped) -> list[Picture]:
    column = mapped.column
    labels = mapped.predictions[column].to_pylist()
    confidence = mapped.predictions[column + _CONFIDENCE].to_numpy()
    if mapped.scores is None or mapped.truth is None:
        groups = {"query cells": np.asarray(confidence)}
        first = Picture(label_counts(labels, f"Predicted {column}"), f"Cells per predicted {column}.")
    else:
        groups = confidence_by_outcome(mapped.truth, labels, confidence)
        first = Picture(confusion_heatmap(mapped.scores), "Where the cells of each true label went.")
    return [first, Picture(confidence_histogram(groups), "Share of the neighbours that agree with the label.")]


def _stem(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2].removesuffix(".h5ad")
