"""The report of `pretrain`, from its request, its losses and its validations."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.evaluation.report.page import page, written
from scgpt_ray.evaluation.report.picture import Picture, png
from scgpt_ray.evaluation.report.run_plots import loss_curve, training_curve
from scgpt_ray.pipelines.pretrain_request import TrainingJob

CURVE, LOSSES, REPORT = "curve.png", "losses.parquet", "report.html"

_MEANINGS = {
    "loss": "Loss: the weighted sum of the objectives, of each training step on its own cells and of validations.",
    "value": "Squared error, in bins, of values predicted from the genes' own tokens.",
    "cell": "Squared error, in bins, of values predicted from the embedding of the cell.",
    "prompt": "Squared error, in bins, of values that the second pass predicts from the embedding of the cell.",
    "label": "Cross-entropy of the cell type.",
    "domain": "Cross-entropy of the domain, which training raises.",
    "label_accuracy": "Share of the cells that get their own label by a vote of their nearest neighbours.",
    "label_asw": "Silhouette width of the labels, from 0 to 1.",
}


def write_training_report(job: TrainingJob, metrics: Mapping[str, Any], losses: Sequence[float]) -> None:
    """Write report.html, curve.png, and losses.parquet with the training loss of every step.

    Args:
        job: The request.
        metrics: Content of metrics.json.
        losses: Training loss of every step, from the first.
    """
    validations, chosen = metrics["validations"], metrics["best"]["step"]
    names = [name for name in validations[0] if name != "step"]
    with job.output.staged(LOSSES) as path:
        pq.write_table(pa.table({"step": range(1, len(losses) + 1), "loss": losses}), path, compression="zstd")
    pictures = [
        Picture(
            loss_curve(losses, validations, chosen) if name == "loss" else training_curve(validations, [name], chosen),
            f"{_MEANINGS[name]} Ring: the checkpoint.",
        )
        for name in names
    ]
    job.output.write(CURVE, png(training_curve(validations, names, chosen)))
    report = page(
        "pretrain.html",
        title=f"Training on {', '.join(place.rstrip('/').rpartition('/')[2] for place in job.settings.atlas)}",
        metrics=metrics,
        names=names,
        pictures=pictures,
        facts=_facts(job, metrics),
    )
    job.output.write(REPORT, report.encode())


def _facts(job: TrainingJob, metrics: Mapping[str, Any]) -> dict[str, object]:
    settings = job.settings
    return {
        "atlases": ", ".join(settings.atlas),
        "training cells": metrics["n_cells"],
        "validation cells": metrics["n_validation"],
        "cells left out, too like those of validation": metrics["n_left_out"],
        "validation groups": ", ".join(metrics["validation_groups"]) or "none",
        "started from": settings.checkpoint or "random weights",
        "parameters": metrics["n_parameters"],
        "tokens of the vocabulary": metrics["n_tokens"],
        "cell types": len(metrics["labels"]),
        "objective": settings.objective,
        "steps": settings.steps,
        "cells per step": settings.cells_per_step,
        "learning rate": settings.learning_rate,
        "seed": settings.seed,
        "written": written(),
    }
