"""Recall of the approximate search, and the cheapest search parameters that reach a target recall.

Queries are indexed cells, and a cell is not its own neighbour. The cost of search parameters is counted, not timed, so
that an index is a function of its request: bytes of codes, which are read sequentially, plus four times the bytes of
vectors, which are read at random (0.5 against 2 GB/s on one core).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scgpt_ray.index.description import TEMPLATE
from scgpt_ray.index.factory import bytes_per_vector
from scgpt_ray.index.search import NONE, Neighbors, exact_search, merge, no_neighbors
from scgpt_ray.index.searcher import CHOSEN_K, SearchParams
from scgpt_ray.records import IndexDescription
from scgpt_ray.schema import Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

RECALL_K = (1, 10, 50)
_RERANKS = (640, 320, 160, 100, 80, 60, 50, 40, 30, 20)
_PLATEAU = 0.002  # stop once two doublings of nprobe gained less recall than this
_RANDOM_READ = 4
_LATENCY_QUERIES = 64
_MS = 1000

Search = Callable[[Float32Matrix, int, SearchParams], Neighbors]
"""Queries float32 [Q, d], k and search parameters -> neighbours."""


def recall_at(found_ids_QK: Int64Array, true_ids_QK: Int64Array) -> float:
    """Recall@K: fraction of the true neighbours that were found, over all queries.

    Args:
        found_ids_QK: int64 [Q, K], neighbours found by the search under evaluation; -1 for none.
        true_ids_QK: int64 [Q, K], neighbours found by exact search; -1 for none, which does not count.
    """
    assert len(found_ids_QK) == len(true_ids_QK), (found_ids_QK.shape, true_ids_QK.shape)
    exists_QK = true_ids_QK != NONE
    assert exists_QK.any(), "recall needs a query with a neighbour"
    found_QK = (true_ids_QK[:, :, None] == found_ids_QK[:, None, :]).any(axis=2)
    return float(found_QK[exists_QK].mean())


@dataclass(frozen=True)
class Point:
    """Search parameters with their recall and cost.

    Attributes:
        nprobe: Inverted lists searched.
        rerank: Candidates re-ranked.
        recall_1_at_10: Fraction of the nearest neighbours that are among the ten found (1-recall@10).
        recall_at_10: Fraction of the ten nearest neighbours that are among the ten found (10-recall@10).
        cost: Bytes read per query; bytes read at random count four times.
    """

    nprobe: int
    rerank: int
    recall_1_at_10: float
    recall_at_10: float
    cost: int

    @property
    def params(self) -> SearchParams:
        """The search parameters."""
        return SearchParams(self.nprobe, self.rerank)


@dataclass(frozen=True)
class RecallSample:
    """Indexed cells with their true neighbours.

    Attributes:
        ids_Q: int64 [Q], the cells.
        queries_QD: float32 [Q, d], their vectors.
        truth_QK: int64 [Q, K], their true neighbours without themselves; -1 if there are fewer than K.
        scores_QK: float32 [Q, K].
    """

    ids_Q: Int64Array
    queries_QD: Float32Matrix
    truth_QK: Int64Array
    scores_QK: Float32Matrix

    def found(self, search: Search, k: int, params: SearchParams) -> Neighbors:
        """The k neighbours of each cell that a search finds, without the cell itself."""
        return without_self(*search(self.queries_QD, k + 1, params), self.ids_Q)

    def recall(self, found_QK: Int64Array, k: int) -> float:
        """Recall@k; 1 if no cell has a neighbour."""
        truth_QK = self.truth_QK[:, :k]
        return recall_at(found_QK, truth_QK) if (truth_QK >= 0).any() else 1.0


class Truth:
    """The true neighbours of some queries among vectors that are read for another purpose.

    Args:
        queries_QD: float32 [Q, d].
        k: Number of neighbours.
    """

    def __init__(self, queries_QD: Float32Matrix, k: int) -> None:
        self._queries_QD, self._k = queries_QD, k
        self.neighbors: Neighbors = no_neighbors(len(queries_QD), k)

    def seen(self, blocks: Iterable[tuple[Int64Array, Float32Matrix]]) -> Iterator[tuple[Int64Array, Float32Matrix]]:
        """Yield blocks of ids and vectors unchanged, and find the neighbours among them."""
        for block in blocks:
            found = exact_search([block], self._queries_QD, self._k)
            self.neighbors = merge([self.neighbors, found], self._k)
            yield block


def without_self(ids_QK: Int64Array, scores_QK: Float32Matrix, own_Q: Int64Array) -> Neighbors:
    """Drop each query's own id (or its last neighbour, if it did not find itself); returns shape [Q, K - 1]."""
    is_own_QK = ids_QK == own_Q[:, None]
    is_own_QK[~is_own_QK.any(axis=1), -1] = True
    shape = (len(own_Q), ids_QK.shape[1] - 1)
    return ids_QK[~is_own_QK].reshape(shape), scores_QK[~is_own_QK].reshape(shape)


def choose_params(
    recall_sample: RecallSample, search: Search, nlist: int, cost_of: Callable[[SearchParams], int], target: float
) -> tuple[Point, list[Point]]:
    """Choose the cheapest search parameters that reach a target recall.

    nprobe is doubled until the largest rerank reaches the target, and once more; for each nprobe rerank is lowered
    until the target is missed. If no point reaches the target, the cheapest within 0.002 of the best recall is chosen.

    Returns:
        The chosen point, and all points measured.
    """
    curve: list[Point] = []

    def measure(nprobe: int, reranks: Iterable[int]) -> list[Point]:
        """Points of falling rerank, down to the first that misses the target."""
        points: list[Point] = []
        for rerank in reranks:
            points.append(point_at(SearchParams(nprobe, rerank), recall_sample, search, cost_of))
            if points[-1].recall_at_10 < target:
                break
        return points

    nprobe, was_met = 1, False
    while True:
        curve += (points := measure(nprobe, _RERANKS))
        is_met = points[0].recall_at_10 >= target
        if nprobe >= nlist or (is_met and was_met) or _is_flat(curve):
            break
        nprobe, was_met = min(2 * nprobe, nlist), is_met
    reachable = max(point.recall_at_10 for point in curve)
    if reachable < target:
        target = reachable - _PLATEAU
        nprobe = next(point.nprobe for point in curve if point.recall_at_10 >= target)
        curve += measure(nprobe, _RERANKS[1:])
    return min((point for point in curve if point.recall_at_10 >= target), key=lambda point: point.cost), curve


def point_at(
    params: SearchParams, recall_sample: RecallSample, search: Search, cost_of: Callable[[SearchParams], int]
) -> Point:
    """Measure the recall of search parameters."""
    found_QK, _ = recall_sample.found(search, CHOSEN_K, params)
    recalls = recall_sample.recall(found_QK, 1), recall_sample.recall(found_QK, CHOSEN_K)
    return Point(params.nprobe, params.rerank, *recalls, cost_of(params))


def _is_flat(curve: Sequence[Point]) -> bool:
    doublings = 2
    highest = [point.recall_at_10 for point in curve if point.rerank == _RERANKS[0]]
    return len(highest) > doublings and highest[-1] - highest[-1 - doublings] < _PLATEAU


def cost_model(factory: str, d: int, n_cells: int, nlist: int) -> Callable[[SearchParams], int]:
    """The cost of search parameters: bytes read per query, those read at random times four."""
    code_bytes = bytes_per_vector(factory, d)

    def cost(params: SearchParams) -> int:
        scanned = n_cells * min(params.nprobe, nlist) // nlist * code_bytes
        return scanned + _RANDOM_READ * params.rerank * 2 * d

    return cost


def speed(queries_QD: Float32Matrix, search: Search, params: SearchParams) -> dict[str, float]:
    """Latency of single queries in milliseconds, and throughput of all queries in one call."""
    search(queries_QD[:1], CHOSEN_K, params)  # opens the shards
    seconds = []
    for place in range(min(_LATENCY_QUERIES, len(queries_QD))):
        started = time.perf_counter()
        search(queries_QD[place : place + 1], CHOSEN_K, params)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    search(queries_QD, CHOSEN_K, params)
    p50, p99 = np.percentile(seconds, [50, 99]) * _MS
    rate = len(queries_QD) / (time.perf_counter() - started)
    return {"p50_ms": float(p50), "p99_ms": float(p99), "queries_per_s": rate}


def bytes_per_cell(output: Folder, index: IndexDescription) -> dict[str, float]:
    """Memory of the opened index, at most (merged lists take a little less), and disk space, in bytes per cell."""
    names = [TEMPLATE, *(name for shard in index.shards for name in shard.files)]
    disk = sum(output.size(name) or 0 for name in names)
    memory = sum(output.size(shard.name) or 0 for shard in index.shards)
    return {"memory": memory / index.n_cells, "disk": disk / index.n_cells}
