"""The result of a mapping: judged where the truth is known, and written for people and programs."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.config import MapSettings
from scgpt_ray.evaluate.labels import LabelScores, confidence_by_outcome, score_labels
from scgpt_ray.evaluate.plots import confidence_histogram, confusion_heatmap, label_counts
from scgpt_ray.evaluate.report import Picture, map_report
from scgpt_ray.folder import Folder
from scgpt_ray.index.description import IndexDescription
from scgpt_ray.mapping.transfer import UNKNOWN
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES
from scgpt_ray.store.export import write_h5ad
from scgpt_ray.store.manifest import Manifest

PREDICTIONS, QUERY_H5AD, METRICS, REPORT = "predictions.parquet", "query.h5ad", "metrics.json", "report.html"
_LABELS_SHOWN = 6


@dataclass(frozen=True)
class Mapped:
    """What became of the query cells.

    Attributes:
        output: Folder of the files.
        n_cells: Query cells.
        n_unknown: Of them without a label in the first column.
        labels: Label column -> label -> cells, most first.
        scores: Agreement with the truth in the first column, where it is known.
    """

    output: Folder
    n_cells: int
    n_unknown: int
    labels: dict[str, dict[str, int]]
    scores: LabelScores | None

    def text(self) -> str:
        """A few lines for a person."""
        column, counts = next(iter(self.labels.items()))
        top = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:_LABELS_SHOWN])
        lines = [f"{self.n_cells} cells mapped on {column} ({top}): {self.output.where(REPORT)}"]
        if self.scores is not None:
            lines.append(self.scores.table())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The main figures for a program."""
        judged = ("accuracy", "macro_f1", "majority_accuracy", "n")
        return {
            "output": self.output.uri,
            "n_cells": self.n_cells,
            "n_unknown": self.n_unknown,
            "scores": {name: getattr(self.scores, name) for name in judged} if self.scores else None,
        }

    def metrics(self) -> dict[str, Any]:
        """All figures: the content of metrics.json."""
        return self.to_dict() | {
            "labels": self.labels,
            "scores": self.scores.to_dict() if self.scores else None,
        }


def judge(
    settings: MapSettings, output: Folder, predictions: pa.Table, reference: set[str], columns: list[str]
) -> Mapped:
    """Count the labels, and compare them with the truth where it is known.

    Args:
        settings: With the truth column, or None.
        output: Folder of the files.
        predictions: One row per query cell.
        reference: Labels that the reference has in the first column.
        columns: Label columns.
    """
    counts = {column: _counts(predictions[column]) for column in columns}
    scores = None
    if settings.truth_column is not None:
        scores = score_labels(
            _texts(predictions, settings.truth_column),
            predictions[columns[0]].to_pylist(),
            predictions[f"{columns[0]}_confidence"].to_numpy(),
            reference,
        )
    return Mapped(output, predictions.num_rows, counts[columns[0]].get(UNKNOWN, 0), counts, scores)


def _counts(labels: pa.ChunkedArray) -> dict[str, int]:
    counted = sorted(labels.value_counts().to_pylist(), key=lambda entry: (-entry["counts"], entry["values"]))
    return {entry["values"]: entry["counts"] for entry in counted}


def _texts(predictions: pa.Table, column: str) -> list[str | None]:
    """A column of the query as texts; it was renamed if it has the name of a label column."""
    own = f"{column}_query"
    texts: list[str | None] = (
        predictions[own if own in predictions.column_names else column].cast(pa.string()).to_pylist()
    )
    return texts


def write_mapped(
    mapped: Mapped,
    settings: MapSettings,
    index: IndexDescription,
    manifest: Manifest,
    queries: pa.Table,
    predictions: pa.Table,
) -> None:
    """Write predictions.parquet, query.h5ad, metrics.json and report.html."""
    sink = pa.BufferOutputStream()
    pq.write_table(predictions, sink, compression="zstd")
    mapped.output.write(PREDICTIONS, sink.getvalue())
    labelled = pa.table({
        **{name: predictions[name] for name in predictions.column_names if name != JOINID},
        **{name: queries[name] for name in (JOINID, N_GENES, EMBEDDING)},
    })  # fmt: skip
    write_h5ad(mapped.output, QUERY_H5AD, labelled)
    mapped.output.write(METRICS, json.dumps(mapped.metrics(), indent=1).encode())
    column = next(iter(mapped.labels))
    report = map_report(
        f"{_stem(settings.query)} mapped onto {_stem(settings.index)}",
        _facts(settings, index, manifest, mapped),
        _pictures(settings, predictions, column, mapped.scores),
        mapped.scores,
    )
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


def _pictures(settings: MapSettings, predictions: pa.Table, column: str, scores: LabelScores | None) -> list[Picture]:
    labels = predictions[column].to_pylist()
    confidence = predictions[f"{column}_confidence"].to_numpy()
    if scores is None or settings.truth_column is None:
        groups = {"query cells": np.asarray(confidence)}
        first = Picture(label_counts(labels, f"Predicted {column}"), f"Cells per predicted {column}.")
    else:
        groups = confidence_by_outcome(_texts(predictions, settings.truth_column), labels, confidence)
        first = Picture(confusion_heatmap(scores), "Where the cells of each true label went.")
    return [
        first,
        Picture(confidence_histogram(groups), "Share of the neighbours that agree with the label."),
    ]


def _stem(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2].removesuffix(".h5ad")
