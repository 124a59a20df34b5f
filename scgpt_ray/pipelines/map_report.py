"""The files of a mapping: predictions, the labelled query, metrics, calibration, and a report with pictures."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.config import MapSettings
from scgpt_ray.evaluation.labels.baseline import BASELINE
from scgpt_ray.evaluation.labels.metrics import outcomes
from scgpt_ray.evaluation.report.bars import coverage_bars
from scgpt_ray.evaluation.report.histograms import confidence_histogram, distance_histogram, genes_histogram
from scgpt_ray.evaluation.report.mapping_report import map_report
from scgpt_ray.evaluation.report.page import Picture
from scgpt_ray.evaluation.report.plots import confusion_heatmap, coverage_accuracy, label_counts, reliability_diagram
from scgpt_ray.evaluation.report.recall_plot import recall_curve
from scgpt_ray.index.description import RECALL
from scgpt_ray.index.recall import Point
from scgpt_ray.parts.export import write_h5ad
from scgpt_ray.pipelines.map_cells import Drawn, drawn_cells, query_view
from scgpt_ray.pipelines.mapping_result import (
    CALIBRATION,
    METRICS,
    PREDICTIONS,
    PROBABILITY,
    QUERY_H5AD,
    REPORT,
    SHARE,
    UMAP,
    Mapped,
    confidences,
    voted,
)
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, N_GENES, NEIGHBOR, SCORE, Int64Array, ragged

_CONFUSION = "Where the vote put the cells of each true label, a row for each; a row's shares add up to 1."


def write_mapped(
    mapped: Mapped, settings: MapSettings, reference: Reference, manifest: Manifest, queries: pa.Table
) -> None:
    """Write predictions.parquet, query.h5ad, metrics.json, report.html; calibration.json and umap.png if any."""
    output = mapped.output
    sink = pa.BufferOutputStream()
    pq.write_table(mapped.predictions, sink, compression="zstd")
    output.write(PREDICTIONS, sink.getvalue())
    labelled = mapped.predictions.drop_columns([NEIGHBOR, SCORE])
    for name in (N_GENES, EMBEDDING):
        labelled = labelled.append_column(name, queries[name])
    write_h5ad(output, QUERY_H5AD, labelled)
    output.write(METRICS, _json(mapped.metrics()))
    if mapped.calibrations:
        output.write(CALIBRATION, _json({column: asdict(found) for column, found in mapped.calibrations.items()}))
    elif output.has(CALIBRATION):
        output.remove(CALIBRATION)  # of an earlier mapping into this folder
    drawn = drawn_cells(mapped, reference, queries)
    if isinstance(drawn, Drawn):
        output.write(UMAP, drawn.png)
    elif output.has(UMAP):
        output.remove(UMAP)
    report = map_report(
        f"{_stem(settings.query)} mapped onto {_stem(settings.index)}",
        _facts(mapped, settings, reference, manifest),
        query_view(drawn, mapped, settings, queries) if isinstance(drawn, Drawn) else drawn,
        coverage_bars(manifest.coverage, manifest.n_cells, manifest.n_empty),
        [*_pictures(mapped), *_genes(queries), *_recall(reference)],
        mapped.evaluation,
        mapped.calibrations,
    )
    output.write(REPORT, report.encode())


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, ensure_ascii=False).encode()


def _facts(mapped: Mapped, settings: MapSettings, reference: Reference, manifest: Manifest) -> dict[str, object]:
    index = reference.index
    facts: dict[str, object] = {
        "query": settings.query,
        "query cells": mapped.n_cells,
        "reference": index.embeddings,
        "reference cells": index.n_cells,
        "index": f"{index.factory}, nprobe {index.nprobe}, rerank {index.rerank}, recall@10 {index.recall_at_10:.4f} "
        f"on {index.recall_queries} cells",
        "neighbours that vote": settings.k,
        "weight of a vote": "larger for the nearer" if settings.weighting == "distance" else "the same for all",
        "votes balanced by": settings.balance_by or "nothing",
        "neighbours left out": f"those with the same {' or '.join(settings.exclude_same)}"
        if settings.exclude_same
        else "none",
        "neighbours allowed": settings.neighbor_filter or "all",
        "calibrated by": settings.calibrate_by or "nothing",
        "checkpoint": f"{settings.checkpoint} (sha256 {manifest.fingerprint.model['weights'][:12]})",
        "label columns": ", ".join(mapped.labels),
    }
    if mapped.evaluation is not None:
        facts[BASELINE] = mapped.beside()
    wanted = {"wanted error": settings.target_error, "allowed false rejection": settings.false_rejection}
    facts |= {name: f"{share:.1%}" for name, share in wanted.items() if share is not None}
    for column, reasons in mapped.unknown.items():
        facts[f"Unknown in {column}"] = (
            ", ".join(f"{cells:,} ({reason})" for reason, cells in reasons.items()) or "none"
        )
    return facts


def _pictures(mapped: Mapped) -> list[Picture]:
    """Pictures of the first label column."""
    column, evaluation = mapped.column, mapped.evaluation
    meaning, confidence = list(confidences(mapped.predictions, column).items())[-1]
    by_confidence = "Confidence of what was voted, rejected or not."
    by_distance = "Distance, 1 - cosine similarity, of each cell to the farthest of its neighbours."
    if evaluation is None:
        labels = mapped.predictions[column].to_pylist()
        pictures = [
            Picture(label_counts(labels, f"Predicted {column}"), f"Cells per predicted {column}."),
            Picture(confidence_histogram({"query cells": confidence}, meaning), by_confidence),
            *_distances(mapped, {"query cells": np.arange(mapped.n_cells)}, by_distance),
        ]
    else:
        said, rejection = voted(mapped.predictions, column), evaluation.rejection
        cells = outcomes(evaluation.truth, said)
        groups = {name: confidence[rows] for name, rows in cells.items()}
        kept = None
        if rejection.accuracy_accepted is not None and rejection.accepted < 1:
            kept = (rejection.accepted, rejection.accuracy_accepted)
        pictures = [
            Picture(confusion_heatmap(evaluation.scores), _CONFUSION),
            Picture(confidence_histogram(groups, meaning), by_confidence),
            *_distances(mapped, cells, by_distance),
            Picture(
                coverage_accuracy({meaning: evaluation.selective_accuracy}, kept),
                "What rejecting the least sure query cells buys.",
            ),
            Picture(
                reliability_diagram(evaluation.reliability), "How often query cells are right, by their confidence."
            ),
        ]
    return pictures + _calibration(mapped)


def _distances(mapped: Mapped, cells: dict[str, Int64Array], caption: str) -> list[Picture]:
    offsets, score_V = ragged(mapped.predictions[SCORE])
    found = np.diff(offsets) > 0
    distance = np.zeros(mapped.n_cells)
    distance[found] = 1 - score_V[offsets[1:][found] - 1].astype(np.float64)
    groups = {name: distance[rows[found[rows]]] for name, rows in cells.items() if found[rows].any()}
    return [Picture(distance_histogram(groups), caption)] if groups else []


def _genes(queries: pa.Table) -> list[Picture]:
    n_genes = queries[N_GENES].to_numpy()
    empty = int((n_genes == 0).sum())
    caption = f"Genes of the vocabulary that query cells have counts of; {empty:,} cells have none."
    return [Picture(genes_histogram({"query cells": n_genes}), caption)]


def _calibration(mapped: Mapped) -> list[Picture]:
    pictures = []
    for column, calibration in mapped.calibrations.items():
        curves = {SHARE: calibration.held_out.before, PROBABILITY: calibration.held_out.after}
        caption = f"Calibration of {column}: how often reference cells of a group left out are right, by confidence."
        pictures.append(Picture(reliability_diagram(curves), caption))
    return pictures


def _recall(reference: Reference) -> list[Picture]:
    """The curve that the index was tuned by; an exact index has one point, and none is drawn."""
    if not reference.folder.has(RECALL):
        return []
    report = json.loads(reference.folder.read(RECALL))
    curve = [Point(**point) for point in report["curve"]]
    if len({point.nprobe for point in curve}) <= 1:
        return []
    png = recall_curve(curve, reference.params, report["target_recall"])
    return [Picture(png, "Part of the true ten nearest neighbours that the index finds, for how far it looks.")]


def _stem(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2].removesuffix(".h5ad")
