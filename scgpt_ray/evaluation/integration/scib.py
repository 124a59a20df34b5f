"""Metrics of scIB on one embedding, and which of them are undefined.

NMI, ARI, graph connectivity and both ASW, of which AvgBIO and AvgBATCH are made, are those of scib 1.1.7
(`scib.metrics.metrics` after `scanpy.pp.neighbors` of the embedding), so that they may stand next to published ones;
tests/scib_golden.json has scib's own numbers. scib-metrics defines three of them otherwise: its graph connectivity
follows directed neighbours, and its NMI and ARI take another implementation of Leiden. LISI and kBET are those of
scib-metrics.

Shape suffixes: N cells, D dimensions, K neighbours.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scgpt_ray.errors import optional
from scgpt_ray.evaluation.neighbors import between_groups, groups_of, nearest, with_self
from scgpt_ray.evaluation.sample import MIN_CELLS
from scgpt_ray.schema import Float32Matrix, Int64Array

_GRAPH_NEIGHBORS = 15
_LISI_NEIGHBORS = 90
_KBET_LEAST, _KBET_MOST = 10, 70
_RESOLUTIONS = tuple(2 * step / 10 for step in range(1, 11))


@dataclass(frozen=True, eq=False)
class EvaluatedCells:
    """Cells in one embedding, with intermediate results that several metrics share.

    Attributes:
        vectors_ND: float32 [n, d], n at least 16.
        label_N: int64 [n], labels numbered from 0.
        key_N: int64 [n], batch keys numbered from 0.
    """

    vectors_ND: Float32Matrix
    label_N: Int64Array
    key_N: Int64Array
    seed: int

    def subset(self, cells: Int64Array) -> "EvaluatedCells":
        """Some of the cells, by their positions, with labels and batch keys numbered anew."""
        label_N, key_N = (np.unique(codes_N[cells], return_inverse=True)[1] for codes_N in (self.label_N, self.key_N))
        return EvaluatedCells(self.vectors_ND[cells], label_N, key_N, self.seed)

    @cached_property
    def neighbors(self) -> Any:
        """The 90 nearest neighbours, the cell itself included; all cells if there are fewer."""
        k = min(_LISI_NEIGHBORS, len(self.vectors_ND)) - 1
        return _neighbors_results(*with_self(*nearest(self.vectors_ND, k)))

    @cached_property
    def graph(self) -> Any:
        """Symmetric graph of the 15 nearest neighbours, the cell itself included, weighted as by UMAP; CSR [n, n].

        It is the `connectivities` of scanpy's neighbours, but exact also for more than 8,192 cells, where scanpy's are
        approximate: clusterings may then differ.
        """
        return self.neighbors.subset_neighbors(_GRAPH_NEIGHBORS).knn_graph_connectivities

    @cached_property
    def clustering(self) -> Int64Array:
        """The cluster of each cell in that of ten Leiden clusterings which has the best NMI, int64 [n].

        Resolutions 0.2, 0.4, ... 2.0; of equals the lowest. The seed of scib is 0.
        """
        found = _leiden(self.graph, _RESOLUTIONS, self.seed)
        return max(found, key=lambda cluster_N: normalized_mutual_info_score(self.label_N, cluster_N))

    @cached_property
    def mixed_labels(self) -> list[Int64Array]:
        """The cells of each label with several batch keys, but fewer batch keys than cells."""
        return [cells for cells in groups_of(self.label_N) if 1 < len(np.unique(self.key_N[cells])) < len(cells)]

    @cached_property
    def kbet_labels(self) -> list[tuple[Int64Array, int]]:
        """The cells of each label that is large enough for kBET, and the number of neighbours to test."""
        sized = [(cells, _kbet_neighbors(self.key_N[cells])) for cells in self.mixed_labels]
        return [(cells, k) for cells, k in sized if k <= len(cells)]


_COMPUTE: dict[str, Callable[[EvaluatedCells], float]] = {
    "nmi": lambda evaluated: normalized_mutual_info_score(evaluated.label_N, evaluated.clustering),
    "ari": lambda evaluated: adjusted_rand_score(evaluated.label_N, evaluated.clustering),
    "asw_label": lambda evaluated: _scib().silhouette_label(evaluated.vectors_ND, evaluated.label_N),
    "asw_batch": lambda evaluated: _scib().silhouette_batch(evaluated.vectors_ND, evaluated.label_N, evaluated.key_N),
    "graph_connectivity": lambda evaluated: _connectivity(evaluated.graph, evaluated.label_N),
    "clisi": lambda evaluated: _scib().clisi_knn(evaluated.neighbors, evaluated.label_N),
    "ilisi": lambda evaluated: _scib().ilisi_knn(evaluated.neighbors, evaluated.key_N),
    "kbet": lambda evaluated: float(np.mean([_kbet(evaluated, cells, k) for cells, k in evaluated.kbet_labels])),
    "pcr": lambda evaluated: _explained(evaluated.vectors_ND, evaluated.key_N),
}


_OF_BATCHES = ("asw_batch", "graph_connectivity", "ilisi", "kbet", "pcr")


def score_cells(evaluated: EvaluatedCells) -> tuple[dict[str, float | None], dict[str, str]]:
    """Compute every metric that is defined for these cells.

    Returns:
        Metric -> value or None, and metric -> why it is None.

    Raises:
        ConfigError: If scib-metrics or leidenalg is not installed.
    """
    return _computed(evaluated, tuple(_COMPUTE))


def score_conditions(
    evaluated: EvaluatedCells, condition_N: Int64Array
) -> tuple[dict[str, float | None], dict[str, str]]:
    """As `score_cells`, but batches are compared within conditions: what separates these is no batch effect.

    Metrics of batches are means over the conditions for which they are defined, weighted by cells.

    Args:
        evaluated: The cells.
        condition_N: Condition of each, int64 [n].
    """
    values, undefined = _computed(evaluated, tuple(name for name in _COMPUTE if name not in _OF_BATCHES))
    large = [cells for cells in groups_of(condition_N) if len(cells) >= MIN_CELLS]
    found = [_computed(evaluated.subset(cells), _OF_BATCHES) for cells in large]
    for name in _OF_BATCHES:
        defined = [(scores[name], len(cells)) for (scores, _), cells in zip(found, large, strict=True)]
        defined = [(score, cells) for score, cells in defined if score is not None]
        if defined:
            found_scores, n_cells = zip(*defined, strict=True)
            values[name] = float(np.average(found_scores, weights=n_cells))
        else:
            values[name] = None
            reasons = dict.fromkeys(lacking[name] for _, lacking in found)
            undefined[name] = f"in no condition: {', '.join(reasons) or f'fewer than {MIN_CELLS} cells'}"
    return values, undefined


def _computed(evaluated: EvaluatedCells, names: Iterable[str]) -> tuple[dict[str, float | None], dict[str, str]]:
    undefined = {name: reason for name, reason in _undefined(evaluated).items() if name in names}
    values = {name: None if name in undefined else float(_COMPUTE[name](evaluated)) for name in names}
    return values, undefined


def _undefined(evaluated: EvaluatedCells) -> dict[str, str]:
    """Metric -> why it is undefined for these cells."""
    reasons: dict[str, str] = {}
    if len(evaluated.label_N) <= _LISI_NEIGHBORS:
        reasons |= dict.fromkeys(("clisi", "ilisi"), f"needs more than {_LISI_NEIGHBORS} cells")
    if not evaluated.label_N.any():
        reasons |= dict.fromkeys(("nmi", "ari", "asw_label", "clisi"), "all cells have the same label, or none")
    if not evaluated.key_N.any():
        reasons |= dict.fromkeys(("asw_batch", "ilisi", "kbet", "pcr"), "all cells have the same batch key")
        return reasons
    if not evaluated.mixed_labels:
        reasons["asw_batch"] = "no label has cells of several batch keys"
    if not evaluated.kbet_labels:
        reasons["kbet"] = f"no label with several batch keys has more than {_KBET_LEAST} cells"
    return reasons


def _leiden(graph_NN: Any, resolutions: Iterable[float], seed: int) -> list[Int64Array]:
    """Leiden clusterings with scanpy's defaults, which scib takes.

    Args:
        graph_NN: Symmetric weights, CSR [n, n].
        resolutions: Of the modularity (Reichardt and Bornholdt's, with the configuration model).
        seed: Of the optimisation, which runs until nothing improves.

    Returns:
        The cluster of each cell, int64 [n], by resolution.
    """
    with optional("the evaluation of an integration", "leidenalg"):
        import igraph
        import leidenalg
    settings = {"weights": "weight", "n_iterations": -1, "seed": seed}
    graph = igraph.Graph.Weighted_Adjacency(graph_NN, mode="directed")
    partitions = [
        leidenalg.find_partition(
            graph, leidenalg.RBConfigurationVertexPartition, resolution_parameter=resolution, **settings
        )
        for resolution in resolutions
    ]
    return [np.asarray(partition.membership, np.int64) for partition in partitions]


def _connectivity(graph_NN: Any, label_N: Int64Array) -> float:
    """Share of a label's cells in its largest connected component, mean over labels."""
    shares = []
    for cells in groups_of(label_N):
        _, component_C = connected_components(graph_NN[cells][:, cells], directed=False)
        shares.append(np.bincount(component_C).max() / len(cells))
    return float(np.mean(shares))


def _kbet_neighbors(key_N: Int64Array) -> int:
    """Neighbours of kBET, the cell itself included: a quarter of the mean number of cells per batch key, as scIB."""
    mean_cells = len(key_N) / len(np.unique(key_N))
    return int(np.clip(mean_cells // 4, _KBET_LEAST, _KBET_MOST)) + 1


def _kbet(evaluated: EvaluatedCells, cells: Int64Array, k: int) -> float:
    """Acceptance rate of kBET among the cells of one label."""
    neighbors = _neighbors_results(*with_self(*nearest(evaluated.vectors_ND[cells], k - 1)))
    acceptance, _, _ = _scib().kbet(neighbors, evaluated.key_N[cells])
    return float(acceptance)


def _explained(vectors_ND: Float32Matrix, key_N: Int64Array) -> float:
    """Share of the variance that lies between batch keys, 0 where there is no variance.

    Regression of all principal components sums to this; that of scib-metrics is NaN where a dimension is constant.
    """
    centred_ND = vectors_ND - vectors_ND.mean(axis=0, dtype=np.float64)
    total = float((centred_ND**2).sum())
    return between_groups(centred_ND, key_N) / total if total else 0.0


def _neighbors_results(places_NK: Int64Array, distances_NK: npt.NDArray[np.float32]) -> Any:
    return _scib().nearest_neighbors.NeighborsResults(indices=places_NK, distances=distances_NK)


def _scib() -> Any:
    with optional("the evaluation of an integration", "scib-metrics"):
        import scib_metrics  # slow to import: it brings jax
    return scib_metrics
