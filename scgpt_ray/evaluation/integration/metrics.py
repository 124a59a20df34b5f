"""Integration metrics: does an embedding separate cell types and mix batch keys?

After Luecken et al. 2022 (doi:10.1038/s41592-021-01336-8). AvgBIO and AvgBATCH are the means that scGPT's authors
report (Cui et al. 2024, doi:10.1038/s41592-024-02201-0), of metrics as scib 1.1.7 defines them (see `scib`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.integration.scib import EvaluatedCells, score_cells, score_conditions
from scgpt_ray.evaluation.sample import MIN_CELLS
from scgpt_ray.schema import Float32Matrix, Int64Array

METRICS = {
    "total": "Total",
    "avg_bio": "AvgBIO",
    "avg_batch": "AvgBATCH",
    "nmi": "NMI",
    "ari": "ARI",
    "asw_label": "ASW label",
    "asw_batch": "ASW batch",
    "graph_connectivity": "graph conn.",
    "clisi": "cLISI",
    "ilisi": "iLISI",
    "kbet": "kBET",
    "pcr": "PCR",
    "pcr_comparison": "PCR comp.",
}
"""Field of the metric -> its name in tables."""

AVERAGES = {
    "avg_bio": {"nmi": 1.0, "ari": 1.0, "asw_label": 1.0},
    "avg_batch": {"graph_connectivity": 1.0, "asw_batch": 1.0},
    "total": {"avg_bio": 0.6, "avg_batch": 0.4},
}
"""Average -> the metrics it is the mean of, with their weights; those of the total are scIB's (Luecken et al. 2022)."""


@dataclass(frozen=True)
class IntegrationScores:
    """Metrics of one embedding, from 0 to 1; larger is better except for `pcr`; None if undefined.

    Those of batches (ASW batch, graph connectivity, iLISI, kBET, PCR) are means over conditions, if there are any.

    Attributes:
        nmi: Normalised mutual information of labels and the best of ten Leiden clusterings.
        ari: Adjusted Rand index of the same clustering.
        asw_label: Silhouette of the labels, scaled to 0..1.
        asw_batch: 1 - |silhouette| of the batch keys within a label, mean over labels.
        graph_connectivity: Share of a label's cells in its largest connected component, mean over labels, in the
            symmetric graph of 15 neighbours.
        clisi: Purity of neighbourhoods in labels, by scib-metrics.
        ilisi: Mixing of batch keys in neighbourhoods, by scib-metrics.
        kbet: Share of a label's cells whose neighbours within the label have its batch keys in proportion (chi
            squared, 5 %), mean over labels. Neighbours are those of the embedding; scIB takes those of a diffusion map.
        pcr: Share of the embedding's variance that the batch keys explain; smaller is better.
        pcr_comparison: 1 - pcr / pcr of the baseline, at least 0.
        undefined: Metric -> why it is None.
    """

    name: str
    nmi: float | None
    ari: float | None
    asw_label: float | None
    asw_batch: float | None
    graph_connectivity: float | None
    clisi: float | None
    ilisi: float | None
    kbet: float | None
    pcr: float | None
    pcr_comparison: float | None
    undefined: dict[str, str]

    @property
    def total(self) -> float | None:
        """0.6 AvgBIO + 0.4 AvgBATCH."""
        return self._average("total")

    @property
    def avg_bio(self) -> float | None:
        """Mean of NMI, ARI and ASW label."""
        return self._average("avg_bio")

    @property
    def avg_batch(self) -> float | None:
        """Mean of graph connectivity and ASW batch."""
        return self._average("avg_batch")

    def _average(self, name: str) -> float | None:
        values = [getattr(self, part) for part in AVERAGES[name]]
        return None if None in values else float(np.average(values, weights=list(AVERAGES[name].values())))

    def to_dict(self) -> dict[str, Any]:
        """All metrics as plain values for JSON, averages first."""
        values = {name: getattr(self, name) for name in METRICS}
        return {"name": self.name, **values, "undefined": dict(self.undefined)}


@dataclass(frozen=True)
class Integration:
    """Metrics of several embeddings of the same cells.

    Attributes:
        labels: Label -> number of cells, the most frequent first, ties by name.
        batch_keys: Batch key -> number of cells, likewise.
    """

    n: int
    labels: dict[str, int]
    batch_keys: dict[str, int]
    scores: tuple[IntegrationScores, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {**vars(self), "scores": [scores.to_dict() for scores in self.scores]}

    def table(self) -> str:
        """The metrics as text for a terminal: one line per metric, one column per embedding."""
        table = pd.DataFrame(
            {scores.name: [getattr(scores, field) for field in METRICS] for scores in self.scores},
            index=list(METRICS.values()),
            dtype=float,
        )
        return str(table.to_string(float_format="{:.4f}".format, na_rep="-"))


def compare_embeddings(
    embeddings: Mapping[str, Float32Matrix],
    labels: Sequence[str],
    batch_keys: Sequence[str],
    *,
    seed: int,
    baseline: str | None = None,
    conditions: Sequence[str] | None = None,
) -> Integration:
    """Evaluate embeddings of the same cells.

    Args:
        embeddings: Name -> float32 [n, d]; d may differ.
        labels: Label of each cell, [n]; a constant without labels.
        batch_keys: Batch key of each cell, [n].
        seed: Seed of the clusterings.
        baseline: Name of the embedding that represents the data before integration, for `pcr_comparison`.
        conditions: Condition of each cell, [n], such as a treatment: batch keys need to mix only among cells of one.

    Raises:
        InputError: If there are too few cells, all have one label and one batch key, or an embedding is not finite.
        ConfigError: If scib-metrics or leidenalg is not installed.
    """
    assert baseline is None or baseline in embeddings
    label_names, label_N = np.unique(np.asarray(labels, str), return_inverse=True)
    key_names, key_N = np.unique(np.asarray(batch_keys, str), return_inverse=True)
    condition_N = None if conditions is None else np.unique(np.asarray(conditions, str), return_inverse=True)[1]
    _require_contrast(len(label_N), len(label_names), len(key_names))
    names = [name for name in embeddings if name != baseline]
    scores: dict[str, IntegrationScores] = {}
    for name in [*([baseline] if baseline else []), *names]:
        vectors_ND = np.ascontiguousarray(embeddings[name], np.float32)
        assert len(vectors_ND) == len(label_N) == len(key_N), "labels, batch keys and vectors belong to the same cells"
        _require_finite(name, vectors_ND)
        before = scores[baseline].pcr if baseline in scores else None
        cells = EvaluatedCells(vectors_ND, label_N, key_N, seed)
        scores[name] = _score(name, cells, condition_N, before, is_baseline=name == baseline)
    return Integration(
        n=len(label_N),
        labels=dict(Counter(sorted(labels)).most_common()),
        batch_keys=dict(Counter(sorted(batch_keys)).most_common()),
        scores=tuple(scores[name] for name in embeddings),
    )


def _score(
    name: str, cells: EvaluatedCells, condition_N: Int64Array | None, pcr_before: float | None, *, is_baseline: bool
) -> IntegrationScores:
    values, undefined = score_cells(cells) if condition_N is None else score_conditions(cells, condition_N)
    comparison = None
    if is_baseline:
        undefined["pcr_comparison"] = "this is the baseline"
    elif not pcr_before or values["pcr"] is None:
        undefined["pcr_comparison"] = undefined.get("pcr", "no baseline with variance between batch keys")
    else:
        comparison = max(0.0, 1 - values["pcr"] / pcr_before)
    for average, parts in AVERAGES.items():
        reasons = [f"{part}: {undefined[part]}" for part in parts if part in undefined]
        if reasons:
            undefined[average] = "; ".join(reasons)
    return IntegrationScores(name=name, pcr_comparison=comparison, undefined=undefined, **values)


def _require_contrast(n_cells: int, n_labels: int, n_keys: int) -> None:
    if n_cells < MIN_CELLS:
        raise InputError(f"{n_cells} cells to evaluate", expected=f"at least {MIN_CELLS}", remedy="evaluate more cells")
    if n_labels == n_keys == 1:
        raise InputError(
            f"all {n_cells:,} cells have one label and one batch key",
            expected="several labels, or several batch keys",
            remedy="name other columns with --label-column and --batch-column",
        )


def _require_finite(name: str, vectors_ND: Float32Matrix) -> None:
    wrong = int((~np.isfinite(vectors_ND)).any(axis=1).sum())
    if wrong:
        raise InputError(
            f"{wrong:,} of {len(vectors_ND):,} vectors of {name} are not finite",
            expected="finite embeddings",
            remedy="omit these cells, or embed them again",
        )
