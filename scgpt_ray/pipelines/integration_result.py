"""The result of `integrate` and its files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scgpt_ray.config import IntegrateSettings
from scgpt_ray.evaluation.factors.effects import FactorEffect, Replicates
from scgpt_ray.evaluation.factors.verdict import effect_dict, verdict
from scgpt_ray.evaluation.integration.metrics import Integration
from scgpt_ray.evaluation.report.picture import Picture, png
from scgpt_ray.evaluation.report.plots import MAX_LABELS, histogram, shortened, umap_scatter
from scgpt_ray.evaluation.report.reports import integration_report
from scgpt_ray.evaluation.report.scatter import Column, Scatter
from scgpt_ray.evaluation.sample import Selection, stratified_sample
from scgpt_ray.evaluation.umap import umap_coordinates
from scgpt_ray.progress import Stage
from scgpt_ray.schema import N_GENES, Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

METRICS, REPORT, UMAP, UMAP_BATCH = "metrics.json", "report.html", "umap.png", "umap-batch.png"

DRAWN_CELLS = 10_000
"""Largest number of cells in a picture."""


@dataclass(frozen=True)
class IntegrationResult:
    """Result of an evaluation of integration.

    Attributes:
        output: Output folder.
        selection: The evaluated cells.
        integration: Metrics of each embedding, and of the baseline if there are counts.
        effects: Effects of the factors; that of the batch column first.
        replicates: Units of the tests of factors; None without a column of donors or samples.
        counts: The atlas from which counts were read; None if there are no counts.
        no_counts: The reason why there are no counts.
        baseline: Values and genes of the principal components; None without them.
    """

    output: Folder
    selection: Selection
    integration: Integration
    effects: tuple[FactorEffect, ...]
    replicates: Replicates | None
    counts: str | None
    no_counts: str | None
    baseline: str | None

    def text(self) -> str:
        """Table of metrics and effects, for the terminal."""
        lacking = "genes" if self.baseline else "baseline and genes"
        without = [f"Without {lacking}: {self.no_counts}."] if self.no_counts else []
        verdicts = [verdict(effect) for effect in self.effects]
        return "\n".join(
            [self.selection.text(), self.integration.table(), *verdicts, *without, self.output.where(REPORT)]
        )

    def to_dict(self) -> dict[str, Any]:
        """The main metrics, for the JSON line on stdout."""
        return {
            "output": self.output.uri,
            "n_cells": self.selection.n_cells,
            "n_evaluated": self.selection.n_evaluated,
            "scores": {
                scores.name: {"total": scores.total, "avg_bio": scores.avg_bio, "avg_batch": scores.avg_batch}
                for scores in self.integration.scores
            },
            "effects": {effect.name: effect.kind for effect in self.effects},
        }

    def metrics(self) -> dict[str, Any]:
        """All metrics: the content of metrics.json."""
        return {
            "output": self.output.uri,
            "cells": self.selection.to_dict(),
            "integration": self.integration.to_dict(),
            "effects": [effect_dict(effect) for effect in self.effects],
            "replicate_column": self.replicates.name if self.replicates else None,
            "counts": self.counts,
            "no_counts": self.no_counts,
            "baseline": self.baseline,
        }


@Stage("write the report")
def write_integration(
    integrated: IntegrationResult,
    settings: IntegrateSettings,
    embeddings: dict[str, Float32Matrix],
    columns: Mapping[str, Sequence[Any]],
    strata: Int64Array,
) -> None:
    """Write metrics.json, umap.png, umap-batch.png and report.html.

    Args:
        integrated: The result.
        settings: Settings of the run.
        embeddings: Name -> float32 [n, d] of the evaluated cells; umap.png shows the first.
        columns: Column -> values of the evaluated cells; the columns of the settings and n_genes.
        strata: int64 [n], code of label and batch of each cell; the cells in pictures are stratified by it.
    """
    output = integrated.output
    output.write(METRICS, json.dumps(integrated.metrics(), indent=1).encode())
    drawn = stratified_sample(strata, DRAWN_CELLS, seed=settings.seed)
    places = {name: umap_coordinates(vectors_ND[drawn], seed=settings.seed) for name, vectors_ND in embeddings.items()}
    groups = [name for name in (settings.label_column, settings.batch_column) if name]
    shown = {name: np.array(columns[name], object)[drawn] for name in dict.fromkeys([*groups, *columns])}
    for name in groups:  # categories, even if they are numbers
        shown[name] = np.array([str(value) for value in shown[name]], object)
    pictures = _pictures(places, {name: shown[name] for name in groups})
    first = next(iter(embeddings))
    output.write(UMAP, png(pictures[first, groups[0]].figure))
    output.write(UMAP_BATCH, png(pictures[first, settings.batch_column].figure))
    caption = _caption(len(drawn), len(strata))
    report = integration_report(
        "Integration of " + ", ".join(scores.name for scores in integrated.integration.scores),
        _facts(integrated, settings),
        integrated.integration,
        integrated.effects,
        Scatter(places, [Column(name, values) for name, values in shown.items()], [], caption),
        [*pictures.values()],
        [_genes(columns, settings.batch_column, integrated.selection)],
        settings.condition_columns,
    )
    output.write(REPORT, report.encode())


def _pictures(
    places: Mapping[str, npt.NDArray[np.float32]], columns: Mapping[str, npt.NDArray[np.object_]]
) -> dict[tuple[str, str], Picture]:
    """Static pictures: each embedding coloured by each column."""
    return {
        (name, column): Picture(
            umap_scatter(coordinates_N2, values.tolist(), f"{shortened(name, 22)} by {column}", half=True),
            f"{name}, coloured by {column}." + _left_out(len(set(values))),
        )
        for name, coordinates_N2 in places.items()
        for column, values in columns.items()
    }


def _caption(n_drawn: int, n_evaluated: int) -> str:
    return (
        f"UMAP of {n_drawn:,} of the {n_evaluated:,} evaluated cells, computed separately for each embedding; the "
        "pictures of labels and batches show the same cells."
    )


def _left_out(n_values: int) -> str:
    return f" All but the {MAX_LABELS - 1} most frequent are other." if n_values > MAX_LABELS else ""


def _genes(columns: Mapping[str, Sequence[Any]], batch_column: str, selection: Selection) -> Picture:
    n_genes, keys = np.array(columns[N_GENES]), np.array([str(value) for value in columns[batch_column]], object)
    groups = {str(key): n_genes[keys == key] for key in np.unique(keys)}
    figure = histogram(groups, "Genes per cell", "genes of the vocabulary with counts")
    left_out = f"; {selection.n_without_embedding:,} cells have none" if selection.n_without_embedding else ""
    return Picture(figure, f"Genes of the vocabulary with counts, per evaluated cell, by {batch_column}{left_out}.")


def _facts(integrated: IntegrationResult, settings: IntegrateSettings) -> dict[str, object]:
    selection = integrated.selection
    return {
        "embeddings": ", ".join(settings.embeddings),
        "cells": selection.n_cells,
        "evaluated": selection.text(),
        "labels": f"{settings.label_column}: {len(integrated.integration.labels)}" if settings.label_column else "none",
        "conditions": ", ".join(settings.condition_columns) or "none",
        "batch keys": f"{settings.batch_column}: {len(integrated.integration.batch_keys)}",
        "replicates": integrated.replicates.text()
        if integrated.replicates
        else "none; tests are about these cells only",
        "counts": integrated.counts or f"none: {integrated.no_counts}",
        "principal components": integrated.baseline or "none",
        "seed": settings.seed,
    }
