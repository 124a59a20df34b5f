"""Writes the output files of `map`: predictions, labelled query, metrics, calibration, UMAP and report."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from scgpt_ray.atlas.source import Source
from scgpt_ray.config import MapSettings
from scgpt_ray.evaluation.labels.baseline import BASELINE
from scgpt_ray.evaluation.labels.metrics import outcomes
from scgpt_ray.evaluation.report.page import written
from scgpt_ray.evaluation.report.palette import OUTCOMES
from scgpt_ray.evaluation.report.picture import Picture, png
from scgpt_ray.evaluation.report.plots import (
    confusion_heatmap,
    coverage_accuracy,
    histogram,
    label_counts,
    reliability_diagram,
)
from scgpt_ray.evaluation.report.reports import map_report
from scgpt_ray.pipelines.index_report import recall_pictures
from scgpt_ray.pipelines.labelled_query import write_labelled_query
from scgpt_ray.pipelines.map_cells import Drawn, drawn_cells, query_view
from scgpt_ray.pipelines.map_findings import findings
from scgpt_ray.pipelines.mapping_result import CALIBRATION, METRICS, QUERY_H5AD, REPORT, UMAP, MappingResult
from scgpt_ray.pipelines.overview import DISTANCE
from scgpt_ray.pipelines.prediction_table import PROBABILITY, SHARE, confidences, voted
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.progress import Stage
from scgpt_ray.records import Manifest
from scgpt_ray.schema import N_GENES, Int64Array

_CONFUSION = "Confusion matrix: share of the cells of each true label (rows, which add up to 1) per voted label."
_REJECTION = "Accuracy of the remaining query cells if the least confident ones are rejected."
_RELIABILITY = "Share of correct query cells by confidence."


@Stage("write the report")
def write_mapping(mapped: MappingResult, settings: MapSettings, reference: Reference, source: Source) -> None:
    """Write metrics.json, report.html, and if any query.h5ad, calibration.json and umap.png."""
    output, manifest = mapped.output, mapped.parts.manifest
    output.write(METRICS, _json(mapped.metrics()))
    if mapped.calibrations:
        output.write(CALIBRATION, _json({column: asdict(found) for column, found in mapped.calibrations.items()}))
    elif output.has(CALIBRATION):
        output.remove(CALIBRATION)  # of an earlier mapping into this folder
    drawn = drawn_cells(mapped, reference)
    left_out = write_labelled_query(mapped, settings, source, reference.index, drawn)
    facts = _facts(mapped, settings, reference, manifest)
    if left_out:
        facts[QUERY_H5AD] = f"left out: {left_out}"
        if output.has(QUERY_H5AD):
            output.remove(QUERY_H5AD)
    if isinstance(drawn, Drawn):
        output.write(UMAP, png(drawn.figure))
    elif output.has(UMAP):
        output.remove(UMAP)
    report = map_report(
        f"{_stem(settings.query)} mapped onto {_stem(settings.index)}",
        findings(mapped),
        facts,
        query_view(drawn, mapped, settings) if isinstance(drawn, Drawn) else drawn,
        manifest.coverage | {"n_cells": manifest.n_cells, "n_empty": manifest.n_empty},
        [*_pictures(mapped), _genes(mapped), *recall_pictures(reference.folder, reference.index)],
        mapped.evaluation,
        mapped.calibrations,
        mapped.promises,
    )
    output.write(REPORT, report.encode())


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, ensure_ascii=False).encode()


def _facts(mapped: MappingResult, settings: MapSettings, reference: Reference, manifest: Manifest) -> dict[str, object]:
    index = reference.index
    facts: dict[str, object] = {
        "query": settings.query,
        "query cells": mapped.n_cells,
        "query cells that could not be embedded": mapped.n_quarantined,
        "query cells that were cut": mapped.drawn_again.text(),
        "reference": index.embeddings,
        "reference cells": index.n_cells,
        "index": f"{index.factory}, nprobe {index.nprobe}, rerank {index.rerank}, recall@10 {index.recall_at_10:.4f} "
        f"on {index.recall_queries} cells",
        "neighbours that vote": settings.k,
        "weight of a vote": "larger for nearer neighbours" if settings.weighting == "distance" else "the same for all",
        "votes balanced by": settings.balance_by or "nothing",
        "neighbours excluded": f"those with the same {' or '.join(settings.exclude_same)}"
        if settings.exclude_same
        else "none",
        "neighbour filter": settings.neighbor_filter or "none",
        "calibrated by": settings.calibrate_by or "nothing",
        "checkpoint": f"{settings.checkpoint} (sha256 {manifest.fingerprint.model['weights'][:12]})",
        "label columns": ", ".join(mapped.labels),
        "written": written(),
    }
    if mapped.overview.is_sample:
        facts["pictures, scores and markers"] = f"of a sample of {len(mapped.overview.rows):,} query cells"
    if mapped.evaluation is not None:
        facts[BASELINE] = mapped.baseline_text()
    targets = {"target error": settings.target_error, "allowed false rejection": settings.false_rejection}
    facts |= {name: f"{share:.1%}" for name, share in targets.items() if share is not None}
    for column, reasons in mapped.unknown.items():
        facts[f"Unknown in {column}"] = (
            ", ".join(f"{cells:,} ({reason})" for reason, cells in reasons.items()) or "none"
        )
    return facts


def _pictures(mapped: MappingResult) -> list[Picture]:
    """Static pictures of the first label column."""
    column, evaluation = mapped.column, mapped.evaluation
    meaning, confidence = list(confidences(mapped.overview.sample, column).items())[-1]
    if evaluation is None:
        cells = {"query cells": np.arange(len(confidence))}
        counts = label_counts(mapped.labels[column], f"Predicted {column}")
        first, last = Picture(counts, f"Cells per predicted {column}."), []
    else:
        outcome_N = outcomes(evaluation.truth, voted(mapped.overview.sample, column))
        cells = {name: np.flatnonzero(outcome_N == name) for name in OUTCOMES if name in outcome_N}
        scores, kept = evaluation.scores, None
        if scores.accuracy_accepted is not None and scores.n_accepted < scores.n:
            kept = (scores.n_accepted / scores.n, scores.accuracy_accepted)
        first = Picture(confusion_heatmap(scores), _CONFUSION)
        last = [
            Picture(coverage_accuracy({meaning: evaluation.selective_accuracy}, kept), _REJECTION),
            Picture(reliability_diagram(evaluation.reliability), _RELIABILITY),
        ]
    groups = {name: confidence[rows] for name, rows in cells.items()}
    by_confidence = histogram(groups, "Confidence", f"confidence: {meaning}", bins=20, range=(0, 1))
    return [
        first,
        Picture(by_confidence, "Confidence of the voted label, including rejected ones."),
        *_distances(mapped, cells),
        *last,
        *_calibration(mapped),
    ]


def _distances(mapped: MappingResult, cells: dict[str, Int64Array]) -> list[Picture]:
    distance = mapped.overview.sample[DISTANCE].to_numpy()
    found = ~np.isnan(distance)
    groups = {name: distance[rows[found[rows]]] for name, rows in cells.items() if found[rows].any()}
    if not groups:
        return []
    figure = histogram(groups, "Distance from the reference", "cosine distance to the farthest of the neighbours")
    return [Picture(figure, "Cosine distance (1 - cosine similarity) of each cell to the farthest of its neighbours.")]


def _genes(mapped: MappingResult) -> Picture:
    n_genes = mapped.overview.sample[N_GENES].to_numpy()
    figure = histogram({"query cells": n_genes}, "Genes per cell", "genes of the vocabulary with counts")
    empty = mapped.overview.n_genes[0]
    return Picture(figure, f"Genes of the vocabulary with counts, per query cell; {empty:,} cells have none.")


def _calibration(mapped: MappingResult) -> list[Picture]:
    pictures = []
    for column, calibration in mapped.calibrations.items():
        curves = {SHARE: calibration.held_out.before, PROBABILITY: calibration.held_out.after}
        caption = f"Calibration of {column}: how often reference cells of held-out groups are right, by confidence."
        pictures.append(Picture(reliability_diagram(curves), caption))
    return pictures


def _stem(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2].removesuffix(".h5ad")
