"""A reference: an index that is searched in this process, or on a cluster by actors that hold shards.

Both search the same blocks of queries with `index.searcher`; actors are asked in rounds (`index.rounds`), so that
results are the same. Exact search compares queries with the embeddings themselves, in one task per group of parts.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.index.description import require_index
from scgpt_ray.index.factory import EXACT, empty_index, n_lists
from scgpt_ray.index.neighbor_filter import NeighborFilter, condition_of
from scgpt_ray.index.opened_shard import Shard, drawn_rows
from scgpt_ray.index.removal import left_of
from scgpt_ray.index.rounds import nearest
from scgpt_ray.index.search import NONE, Neighbors, exact_search, merge, no_neighbors, set_threads
from scgpt_ray.index.searcher import Searcher, SearchParams
from scgpt_ray.index.shard import require_files
from scgpt_ray.parts.parts import read_vectors
from scgpt_ray.pipelines.executor import Executor
from scgpt_ray.pipelines.hub_index import cached_index, is_on_hub
from scgpt_ray.records import IndexDescription, ShardDescription
from scgpt_ray.schema import JOINID, Float32Matrix, Int64Array, known_texts
from scgpt_ray.storage import Folder

_QUERIES_AT_ONCE = 2048
_TASKS_PER_CPU = 4  # of exact search: few enough to merge, enough to balance the load
_WIDER = 4  # factor by which nprobe grows when neighbours are missing


def exact_neighbors(
    executor: Executor, parts: Folder, names: Sequence[str], queries_QD: Float32Matrix, k: int
) -> Neighbors:
    """Exact search over all vectors of the parts: ids int64 [Q, k] and scores float32 [Q, k].

    Each task searches several parts, so that the number of results to merge does not grow with the number of parts.
    """
    queries = executor.share(queries_QD)
    n_tasks = min(len(names), _TASKS_PER_CPU * sum(executor.nodes))
    groups = [group.tolist() for group in np.array_split(np.array(names), n_tasks)]
    return merge(executor.tasks(_search_parts, [(parts, group, queries, k) for group in groups]), k)


def _search_parts(parts: Folder, names: list[str], queries_QD: Float32Matrix, k: int) -> Neighbors:
    set_threads(1)
    return exact_search((read_vectors(parts, name) for name in names), queries_QD, k)


@dataclass(frozen=True)
class Reference:
    """A finished index that queries are mapped onto.

    Attributes:
        folder: Folder of the index.
        index: Description of the index.
        executor: Executor of searches; None before one is open.
        actors: Number of actors that hold the shards. 0: this process; None: one per node if there are several nodes.
    """

    folder: Folder
    index: IndexDescription
    executor: Executor | None = None
    actors: int | None = None

    @classmethod
    def at(cls, place: str) -> "Reference":
        """Make a reference of the output folder of a finished `index`, or of its copy on a hub (hf://...).

        Raises:
            ReferenceSetError: If the folder is not that of a finished index, or cannot be downloaded.
        """
        folder = cached_index(place) if is_on_hub(place) else Folder.at(place)
        return cls(folder, require_index(folder))

    def on(self, executor: Executor) -> "Reference":
        """The same reference, searched by an executor."""
        return replace(self, executor=executor)

    @property
    def _executor(self) -> Executor:
        assert self.executor is not None, "name an executor by Reference.on"
        return self.executor

    @property
    def params(self) -> SearchParams:
        """Default search parameters, which reach the target recall."""
        return SearchParams(self.index.nprobe, self.index.rerank)

    def require(self, k: int, columns: Sequence[str], condition: str | None) -> None:
        """Check a request against this index.

        Raises:
            ConfigError: If the index has fewer than k cells, or lacks a label column.
            ReferenceSetError: If a file of a shard is missing or torn.
        """
        require_files(self.folder, self.index.shards)
        if k > self.index.n_cells:
            raise ConfigError(
                f"--k {k}: {self.folder.uri} holds {self.index.n_cells} cells",
                expected=f"at most {self.index.n_cells}",
                remedy="lower --k",
            )
        lacking = [name for name in columns if name not in self.index.label_columns]
        if lacking:
            raise ConfigError(
                f"{self.folder.uri} keeps no column {', '.join(lacking)}",
                expected=f"one of {', '.join(self.index.label_columns) or 'none'}",
                remedy="build the index with --label-columns",
            )
        if condition is not None:
            with self.folder.open(self.index.shards[0].labels) as stream:
                condition_of(condition, pq.read_schema(stream))

    def neighbors(
        self,
        queries_QD: Float32Matrix,
        k: int,
        allowed: NeighborFilter | None = None,
        params: SearchParams | None = None,
    ) -> Neighbors:
        """The k nearest neighbours.

        Args:
            queries_QD: float32 [Q, d], L2-normalised.
            k: Number of neighbours.
            allowed: Cells that each query may find; None for all.
            params: Initial search parameters. For queries with fewer than k results nprobe grows, up to all lists.

        Returns:
            ids int64 [Q, k], -1 where fewer than k cells are allowed; scores float32 [Q, k], -inf there.

        Raises:
            ReferenceSetError: If the queries have another width than the index.
        """
        if queries_QD.shape[1] != self.index.d:
            raise ReferenceSetError(
                f"queries have width {queries_QD.shape[1]}, {self.folder.uri} has width {self.index.d}",
                expected="embeddings of the same checkpoint",
                remedy="embed the query with the checkpoint of the index",
            )
        ids_QK, scores_QK = no_neighbors(len(queries_QD), k)
        for start in range(0, len(queries_QD), _QUERIES_AT_ONCE):
            rows = np.arange(start, min(start + _QUERIES_AT_ONCE, len(queries_QD)))
            ids_QK[rows], scores_QK[rows] = self._complete(queries_QD, rows, k, allowed, params or self.params)
        return ids_QK, scores_QK

    def _complete(
        self, queries_QD: Float32Matrix, rows: Int64Array, k: int, allowed: NeighborFilter | None, params: SearchParams
    ) -> Neighbors:
        """Neighbours of some queries; more lists are searched for those with too few results."""
        ids_QK, scores_QK = no_neighbors(len(rows), k)
        short = np.arange(len(rows))
        while len(short):
            asked = rows[short]
            found = self._ask(queries_QD[asked], k, params, allowed and allowed.of(asked))
            ids_QK[short], scores_QK[short] = found
            if params.nprobe >= self._nlist:
                break
            short = short[ids_QK[short, -1] == NONE]
            params = SearchParams(min(params.nprobe * _WIDER, self._nlist), params.rerank)
        return ids_QK, scores_QK

    def _ask(
        self, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed: NeighborFilter | None
    ) -> Neighbors:
        if isinstance(self._searchers, Searcher):
            return self._searchers.search(queries_QD, k, params, allowed)
        if self.index.factory == EXACT:
            return merge(self._answers("among", queries_QD, k, allowed), k)
        n_candidates = params.n_candidates(k)
        return nearest(self._answers, queries_QD, k, params.nprobe, n_candidates, allowed, alone=False)

    def _answers(self, method: str, asked: Any, *arguments: Any, own: Sequence[Any] | None = None) -> list[Any]:
        """What a method of the searchers says to a large array, which is sent once, and to what is theirs alone."""
        if isinstance(self._searchers, Searcher):
            return [getattr(self._searchers, method)(asked, *arguments)]
        shared = self._executor.share(asked)
        last = [()] * len(self._searchers) if own is None else [(each,) for each in own]
        answers = [
            searcher(method, shared, *arguments, *each) for searcher, each in zip(self._searchers, last, strict=True)
        ]
        return [wait() for wait in answers]

    @cached_property
    def _nlist(self) -> int:
        return n_lists(empty_index(self.index.factory, self.index.d))

    @cached_property
    def _searchers(self) -> Searcher | list[Callable[..., Any]]:
        """The opened shards, or actors that have opened them and end with this object."""
        nodes = [1] if self.actors == 0 else self._executor.nodes
        n_actors = self.actors if self.actors is not None else len(nodes) if len(nodes) > 1 else 0
        if n_actors == 0:
            return Searcher(self.folder, self.index.shards)
        groups = np.array_split(np.arange(len(self.index.shards)), min(n_actors, len(self.index.shards)))
        threads = max(1, sum(nodes) // len(groups) // 2)  # half of the cores is left to other tasks
        held = [tuple(self.index.shards[place] for place in group) for group in groups]
        calls = [(self.folder, shards, threads) for shards in held]
        return self._executor.actors(_Group, calls, cpus=min(threads, max(nodes)))

    def exact(self, queries_QD: Float32Matrix, k: int) -> Neighbors:
        """Exact search over the vectors that the index stores."""
        queries = self._executor.share(queries_QD)
        calls = [(self.folder, shard, queries, k) for shard in self.index.shards]
        return merge(self._executor.tasks(_search_exactly, calls), k)

    def labels(self, neighbor_ids_QK: Int64Array, columns: Sequence[str]) -> pa.Table:
        """soma_joinid and label columns of all neighbours."""
        ids = np.unique(neighbor_ids_QK)
        return pa.concat_tables(self._answers("labels", ids[ids != NONE], columns))

    def cell_counts(self, column: str, condition: str | None = None) -> dict[str | None, int]:
        """Number of cells per value of a label column: text of the value, or None where it is not known -> cells.

        Args:
            column: Label column.
            condition: Filter on the label columns, as checked by `require`; None for all cells.
        """
        counts = self._cell_counts(column, condition, None)
        assert counts is not None, "there is no limit"
        return counts

    def listed_counts(self, column: str, most: int) -> dict[str | None, int] | None:
        """`cell_counts` of all cells; None for a column like a barcode, with more than `most` values in a shard."""
        return self._cell_counts(column, None, most)

    def _cell_counts(self, column: str, condition: str | None, most: int | None) -> dict[str | None, int] | None:
        calls = [(self.folder, shard, column, condition, most) for shard in self.index.shards]
        counts: Counter[str | None] = Counter()
        for counted in self._executor.tasks(_count, calls, cpus=0.5):
            if counted is None:
                return None
            counts.update(counted)
        return dict(counts)

    def sample(self, n: int, seed: int, columns: Sequence[str]) -> tuple[Int64Array, Float32Matrix, pa.Table]:
        """Draw cells uniformly, the same for a seed, in the order of shards and rows.

        Args:
            n: Number of cells; all, if there are fewer.
            seed: Seed of the draw.
            columns: Label columns.

        Returns:
            ids int64 [n]; vectors float32 [n, d], of unit length, as precise as the index stores them; and a table of
            soma_joinid and the label columns.
        """
        drawn = drawn_rows(self.index.shards, n, seed)
        calls = [
            (self.folder, shard, rows, list(columns)) for shard, rows in zip(self.index.shards, drawn, strict=True)
        ]
        ids, vectors, tables = zip(*self._executor.tasks(_take, calls), strict=True)
        labels = pa.concat_tables([table.unify_dictionaries() for table in tables])
        return np.concatenate(ids), np.concatenate(vectors), labels


class _Group(Searcher):
    """An actor that holds some shards open; its state is in files, so that it can be restarted."""

    def __init__(self, folder: Folder, shards: tuple[ShardDescription, ...], threads: int) -> None:
        set_threads(threads)
        super().__init__(folder, shards)


def _search_exactly(folder: Folder, shard: ShardDescription, queries_QD: Float32Matrix, k: int) -> Neighbors:
    set_threads(1)
    return Searcher(folder, [shard]).exact(queries_QD, k)


def _take(
    folder: Folder, shard: ShardDescription, rows: Int64Array, columns: list[str]
) -> tuple[Int64Array, Float32Matrix, pa.Table]:
    opened = Searcher(folder, [shard]).shards[0]
    rows = opened.rows[rows]
    labels = opened.labels([JOINID, *columns]).take(pa.array(rows))
    return np.asarray(opened.ids_N)[rows], unit_vectors(opened, rows), labels


def unit_vectors(shard: Shard, rows: Int64Array) -> Float32Matrix:
    """Vectors of some rows of a shard, float32 [n, d], of unit length."""
    vectors_ND = shard.vectors(rows)
    vectors_ND /= np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors_ND


def _count(
    folder: Folder, shard: ShardDescription, column: str, condition: str | None, most: int | None
) -> dict[str | None, int] | None:
    counted = known_texts(labels_that_meet(folder, shard, [column], condition)[column]).value_counts()
    if most is not None and len(counted) > most:
        return None
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}


def labels_that_meet(
    folder: Folder, shard: ShardDescription, columns: Sequence[str], condition: str | None
) -> pa.Table:
    """Read label columns of the cells of a shard that meet a condition as checked by `Reference.require`."""
    with folder.open(shard.labels) as stream:
        opened = pq.ParquetFile(stream)
        met = condition_of(condition, opened.schema_arrow)
        needed = {*columns, *(met.columns() if met else ()), *([JOINID] if shard.removed else ())}
        labels = left_of(folder, shard, opened.read(columns=sorted(needed))).unify_dictionaries()
    kept = labels.select(list(columns))
    return kept if met is None else kept.filter(pa.array(met.mask(labels)))
