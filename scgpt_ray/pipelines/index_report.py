"""The report of `index`, from recall.json, fitness.json and the description."""

import json
from typing import Any

from scgpt_ray.evaluation.report.page import page, written
from scgpt_ray.evaluation.report.picture import Picture
from scgpt_ray.evaluation.report.plots import recall_curve
from scgpt_ray.index.description import RECALL
from scgpt_ray.index.recall import Point
from scgpt_ray.index.searcher import SearchParams
from scgpt_ray.records import Fitness, IndexDescription
from scgpt_ray.storage import Folder

REPORT = "report.html"


def write_index_report(output: Folder, index: IndexDescription) -> None:
    """Write report.html of an index whose recall and fitness are there."""
    measured = json.loads(output.read(RECALL))
    chosen = next(
        point for point in measured["curve"] if (point["nprobe"], point["rerank"]) == (index.nprobe, index.rerank)
    )
    report = page(
        "index.html",
        title=f"Index of {index.embeddings.rstrip('/').rpartition('/')[2]}",
        index=index,
        measured=measured,
        scanned=chosen["cost"],
        fitness=Fitness.read(output),
        pictures=recall_pictures(output, index),
        facts=_facts(index, measured),
    )
    output.write(REPORT, report.encode())


def recall_pictures(folder: Folder, index: IndexDescription) -> list[Picture]:
    """The curve from which search parameters were chosen; none where only one number of lists was tried."""
    if not folder.has(RECALL):
        return []
    measured = json.loads(folder.read(RECALL))
    curve = [Point(**point) for point in measured["curve"]]
    if len({point.nprobe for point in curve}) <= 1:
        return []
    figure = recall_curve(curve, SearchParams(index.nprobe, index.rerank), measured["target_recall"])
    return [Picture(figure, "Recall@10 of the index against exact search, by number of lists searched.")]


def _facts(index: IndexDescription, measured: dict[str, Any]) -> dict[str, object]:
    return {
        "embeddings": ", ".join((index.embeddings, *index.appended)),
        "cells": index.n_cells,
        "checkpoint": index.checkpoint,
        "factory": index.factory,
        "shards": len(index.shards),
        "width": index.d,
        "nprobe, rerank": f"{index.nprobe}, {index.rerank}",
        "target recall": measured["target_recall"],
        "label columns": ", ".join(index.label_columns) or "none",
        "fingerprint": index.fingerprint.digest,
        "written": written(),
    }
