"""The recall report of an index: `recall.json`, for the report's picture and for whoever asks what to believe.

queries, truth          how it was measured
recall                  {"1": .., "10": .., "50": ..} at the chosen effort
curve                   nprobe, rerank, recall_at_1, recall_at_10 and cost of every effort that was tried
labels                  column -> agreement of the majority of ten found neighbours with that of the true ten,
overall and by label, rarest first
speed, bytes_per_cell   of this machine, as it was
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from scgpt_ray.folder import Folder
from scgpt_ray.index.description import RECALL, IndexDescription
from scgpt_ray.index.recall import CHOSEN_K, RECALL_K, Exam, Point, Search, bytes_per_cell, speed
from scgpt_ray.index.searcher import Effort
from scgpt_ray.mapping.ballot import VoteRules, hold_ballot
from scgpt_ray.schema import Int64Array

Labels = Callable[[Int64Array, Sequence[str]], pa.Table]
"""Ids and columns -> soma_joinid and these label columns."""


def write_report(
    output: Folder,
    index: IndexDescription,
    exam: Exam,
    search: Search,
    curve: list[Point],
    labels: Labels,
) -> None:
    """Measure what is worth knowing at the chosen effort and write recall.json."""
    effort = Effort(index.nprobe, index.rerank)
    recall = {str(k): exam.recall(exam.found(search, k, effort)[0], k) for k in RECALL_K}
    report = {
        "queries": len(exam.ids_Q),
        "truth": "exact search over the embeddings in float32, the query itself left out",
        "target_recall": index.request["target_recall"],
        "nprobe": effort.nprobe,
        "rerank": effort.rerank,
        "recall": recall,
        "curve": [asdict(point) for point in sorted(curve, key=lambda point: (point.nprobe, point.rerank))],
        "labels": agreement(exam, search, effort, labels, index.label_columns),
        "speed": speed(exam.queries_QD, search, effort),
        "bytes_per_cell": bytes_per_cell(output, index),
    }
    output.write(RECALL, json.dumps(report, indent=1, ensure_ascii=False).encode())


def agreement(exam: Exam, search: Search, effort: Effort, labels: Labels, columns: Sequence[str]) -> dict[str, Any]:
    """How often the majority of ten found neighbours says what that of the true ten says.

    Returns:
        For each column the share of the queries, overall and for each label that the truth says, rarest first.
    """
    if not columns:
        return {}
    truth_QK, truth_scores_QK = exam.truth_QK[:, :CHOSEN_K], exam.scores_QK[:, :CHOSEN_K]
    found_QK, found_scores_QK = exam.found(search, CHOSEN_K, effort)
    known = labels(np.concatenate([truth_QK.ravel(), found_QK.ravel()]), columns)
    told: dict[str, Any] = {}
    for column in columns:
        expected, said = (
            hold_ballot(ids_QK, scores_QK, known, column, VoteRules(), {}).winners
            for ids_QK, scores_QK in ((truth_QK, truth_scores_QK), (found_QK, found_scores_QK))
        )
        agrees = expected == said
        names, counts = np.unique([name for name in expected if name is not None], return_counts=True)
        told[column] = {
            "agreement": float(agrees.mean()) if len(agrees) else 1.0,
            "by_label": [
                {"label": str(name), "n": int(n), "agreement": float(agrees[expected == name].mean())}
                for n, name in sorted(zip(counts, names, strict=True))
            ],
        }
    return told
