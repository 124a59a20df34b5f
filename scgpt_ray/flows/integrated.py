"""The result of an integration, written for people and programs."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scgpt_ray.config import IntegrateSettings
from scgpt_ray.evaluate.factors import FactorEffect
from scgpt_ray.evaluate.integration import Integration
from scgpt_ray.evaluate.integration_report import integration_report
from scgpt_ray.evaluate.plots import umap_scatter
from scgpt_ray.evaluate.report import Picture
from scgpt_ray.evaluate.sample import Selection, stratified_sample
from scgpt_ray.evaluate.umap import umap_coordinates
from scgpt_ray.evaluate.verdict import effect_dict, verdict
from scgpt_ray.folder import Folder
from scgpt_ray.schema import Float32Matrix, Int64Array

METRICS, REPORT, UMAP, UMAP_BATCH = "metrics.json", "report.html", "umap.png", "umap-batch.png"

DRAWN_CELLS = 10_000
"""Most cells in a picture."""


@dataclass(frozen=True)
class Integrated:
    """What was found.

    Attributes:
        output: Folder of the files.
        selection: Which cells were judged.
        integration: Metrics of each embedding, and of the baseline where there are counts.
        effects: What the factors do; that of the batch column first.
        counts: The atlas whose counts were read; None where none were.
        no_counts: Why not.
    """

    output: Folder
    selection: Selection
    integration: Integration
    effects: tuple[FactorEffect, ...]
    counts: str | None
    no_counts: str | None

    def text(self) -> str:
        """The table and the verdicts, for a person."""
        without = [f"Without baseline and genes: {self.no_counts}."] if self.no_counts else []
        verdicts = [verdict(effect) for effect in self.effects]
        return "\n".join(
            [self.selection.text(), self.integration.table(), *verdicts, *without, self.output.where(REPORT)]
        )

    def to_dict(self) -> dict[str, Any]:
        """The main figures for a program."""
        return {
            "output": self.output.uri,
            "n_cells": self.selection.n_cells,
            "n_judged": self.selection.n_judged,
            "scores": {
                scores.name: {"avg_bio": scores.avg_bio, "avg_batch": scores.avg_batch}
                for scores in self.integration.scores
            },
            "effects": {effect.name: effect.kind for effect in self.effects},
        }

    def metrics(self) -> dict[str, Any]:
        """All figures: the content of metrics.json."""
        return {
            "output": self.output.uri,
            "cells": self.selection.to_dict(),
            "integration": self.integration.to_dict(),
            "effects": [effect_dict(effect) for effect in self.effects],
            "counts": self.counts,
            "no_counts": self.no_counts,
        }


def write_integrated(
    integrated: Integrated,
    settings: IntegrateSettings,
    embeddings: dict[str, Float32Matrix],
    labels: list[str],
    batch_keys: list[str],
    strata: Int64Array,
) -> None:
    """Write metrics.json, umap.png, umap-batch.png and report.html.

    Args:
        integrated: What was found.
        settings: What was asked.
        embeddings: Name -> float32 [n, d] of the judged cells; umap.png is of the first.
        labels: Of the judged cells.
        batch_keys: Likewise.
        strata: Label and batch key of each as one number, by which cells are chosen for the pictures.
    """
    output = integrated.output
    output.write(METRICS, json.dumps(integrated.metrics(), indent=1).encode())
    drawn = stratified_sample(strata, DRAWN_CELLS, seed=settings.seed)
    columns = {settings.batch_column: np.array(batch_keys, object)[drawn]}
    if settings.label_column:
        columns = {settings.label_column: np.array(labels, object)[drawn], **columns}
    pictures = []
    for name, vectors_ND in embeddings.items():
        drawings = _umaps(name, vectors_ND[drawn], columns, settings.seed)
        pictures += [Picture(png, f"{name}, coloured by {column}.") for column, png in drawings.items()]
        if name == next(iter(embeddings)):
            output.write(UMAP, next(iter(drawings.values())))
            output.write(UMAP_BATCH, drawings[settings.batch_column])
    title = "Integration of " + ", ".join(scores.name for scores in integrated.integration.scores)
    report = integration_report(
        title, _facts(integrated, settings), integrated.integration, integrated.effects, pictures
    )
    output.write(REPORT, report.encode())


def _umaps(
    name: str, vectors_ND: Float32Matrix, columns: dict[str, npt.NDArray[np.object_]], seed: int
) -> dict[str, bytes]:
    coordinates_N2 = umap_coordinates(vectors_ND, seed=seed)
    return {
        column: umap_scatter(coordinates_N2, values.tolist(), f"{name} by {column}")
        for column, values in columns.items()
    }


def _facts(integrated: Integrated, settings: IntegrateSettings) -> dict[str, object]:
    selection = integrated.selection
    return {
        "embeddings": ", ".join(settings.embeddings),
        "cells": selection.n_cells,
        "judged": selection.text(),
        "labels": f"{settings.label_column}: {len(integrated.integration.labels)}" if settings.label_column else "none",
        "batch keys": f"{settings.batch_column}: {len(integrated.integration.batch_keys)}",
        "counts": integrated.counts or f"none: {integrated.no_counts}",
        "seed": settings.seed,
    }
