"""The recall report of an index, `recall.json`.

queries, truth          how recall was measured
recall                  recall_at_1, recall_at_10 and recall_at_50 at the chosen search parameters: the part of the true
                        k nearest neighbours that is among the k found
curve                   nprobe, rerank, recall_1_at_10, recall_at_10 and cost of all search parameters tried;
                        recall_1_at_10 is the share of the queries whose true nearest neighbour is among the ten found
labels                  column -> agreement of the majority label of ten found neighbours with that of the ten true
                        ones, overall and by label, rarest first
speed, bytes_per_cell   measured on this machine
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from scgpt_ray.index.description import RECALL
from scgpt_ray.index.recall import RECALL_K, Point, RecallSample, Search, bytes_per_cell, speed
from scgpt_ray.index.searcher import CHOSEN_K, SearchParams
from scgpt_ray.mapping.votes import VoteRules, label_votes
from scgpt_ray.progress import Stage
from scgpt_ray.records import IndexDescription
from scgpt_ray.schema import Int64Array
from scgpt_ray.storage import Folder

Labels = Callable[[Int64Array, Sequence[str]], pa.Table]
"""Ids and columns -> soma_joinid and these label columns."""


@Stage("measure recall")
def write_report(
    output: Folder,
    index: IndexDescription,
    recall_sample: RecallSample,
    search: Search,
    curve: list[Point],
    labels: Labels,
) -> None:
    """Measure recall, label agreement, speed and memory at the chosen search parameters, and write recall.json."""
    params = SearchParams(index.nprobe, index.rerank)
    recall = {f"recall_at_{k}": recall_sample.recall(recall_sample.found(search, k, params)[0], k) for k in RECALL_K}
    report = {
        "queries": len(recall_sample.ids_Q),
        "truth": "exact search over the embeddings in float32, without the query itself",
        "target_recall": index.request["target_recall"],
        "nprobe": params.nprobe,
        "rerank": params.rerank,
        "recall": recall,
        "curve": [asdict(point) for point in sorted(curve, key=lambda point: (point.nprobe, point.rerank))],
        "labels": agreement(recall_sample, search, params, labels, index.label_columns),
        "speed": speed(recall_sample.queries_QD, search, params),
        "bytes_per_cell": bytes_per_cell(output, index),
    }
    output.write(RECALL, json.dumps(report, indent=1, ensure_ascii=False).encode())


def agreement(
    recall_sample: RecallSample, search: Search, params: SearchParams, labels: Labels, columns: Sequence[str]
) -> dict[str, Any]:
    """How often the majority label of ten found neighbours agrees with that of the ten true ones.

    Returns:
        Column -> share of the queries that agree, overall and by true majority label, rarest first.
    """
    if not columns:
        return {}
    truth_QK, truth_scores_QK = recall_sample.truth_QK[:, :CHOSEN_K], recall_sample.scores_QK[:, :CHOSEN_K]
    found_QK, found_scores_QK = recall_sample.found(search, CHOSEN_K, params)
    known = labels(np.concatenate([truth_QK.ravel(), found_QK.ravel()]), columns)
    report: dict[str, Any] = {}
    for column in columns:
        expected, said = (
            label_votes(ids_QK, scores_QK, known, column, VoteRules(), {}).top_labels
            for ids_QK, scores_QK in ((truth_QK, truth_scores_QK), (found_QK, found_scores_QK))
        )
        agrees = expected == said
        names, counts = np.unique([name for name in expected if name is not None], return_counts=True)
        report[column] = {
            "agreement": float(agrees.mean()) if len(agrees) else 1.0,
            "by_label": [
                {"label": str(name), "n": int(n), "agreement": float(agrees[expected == name].mean())}
                for n, name in sorted(zip(counts, names, strict=True))
            ],
        }
    return report
