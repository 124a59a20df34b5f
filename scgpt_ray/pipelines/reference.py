"""A reference: an index that is searched, on one machine in this process, on a cluster by actors that hold shards.

Both ask `index.searcher` for the same blocks of queries and merge by score and id, so the answers are the same. The
exact twin compares with the embeddings themselves, a task for some of the parts.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.index.description import require_index
from scgpt_ray.index.factory import empty_index, n_lists
from scgpt_ray.index.neighbor_filter import Allowed, condition_of
from scgpt_ray.index.search import NONE, Neighbors, exact_search, merge, no_neighbors, set_threads
from scgpt_ray.index.searcher import Searcher, SearchParams
from scgpt_ray.parts.parts import read_vectors
from scgpt_ray.pipelines.executor import Executor
from scgpt_ray.records import IndexDescription, ShardDescription
from scgpt_ray.schema import JOINID, Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

_QUERIES_AT_ONCE = 2048
_TASKS_PER_CPU = 4  # of a search through parts: few enough to merge, enough to even out
_WIDER = 4  # lists of a search for neighbours that are missing, against the search before


def exact_neighbors(
    executor: Executor, parts: Folder, names: Sequence[str], queries_QD: Float32Matrix, k: int
) -> Neighbors:
    """The k nearest by comparing with every vector of the parts: ids int64 [Q, k] and scores float32 [Q, k].

    A task looks through several parts, so that what comes back does not grow with their number.
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
        folder: Where it is.
        index: What it says about itself.
        executor: Where it is searched; None before that is known.
        actors: Processes that hold the shards; 0 for this process alone, None for one per node where there are several.
    """

    folder: Folder
    index: IndexDescription
    executor: Executor | None = None
    actors: int | None = None

    @classmethod
    def at(cls, place: str) -> "Reference":
        """Name the output folder of a finished `index`.

        Raises:
            ReferenceSetError: If it is none.
        """
        folder = Folder.at(place)
        return cls(folder, require_index(folder))

    def on(self, executor: Executor) -> "Reference":
        """The same, searched by an executor."""
        return replace(self, executor=executor)

    @property
    def _executor(self) -> Executor:
        assert self.executor is not None, "name an executor by Reference.on"
        return self.executor

    @property
    def params(self) -> SearchParams:
        """How far a search looks: what the recall report chose."""
        return SearchParams(self.index.nprobe, self.index.rerank)

    def require(self, k: int, columns: Sequence[str], condition: str | None) -> None:
        """Refuse what this index cannot answer.

        Raises:
            ConfigError: If it holds fewer than k cells, or keeps no such label column.
        """
        if k > self.index.n_cells:
            raise ConfigError(
                f"--k {k}: {self.folder.uri} holds {self.index.n_cells} cells",
                expected="at most as many neighbours as there are cells",
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
        self, queries_QD: Float32Matrix, k: int, allowed: Allowed | None = None, params: SearchParams | None = None
    ) -> Neighbors:
        """The k nearest neighbours.

        Args:
            queries_QD: float32 [Q, d], L2-normalised.
            k: Neighbours wanted.
            allowed: Cells that each query may find; None for all.
            params: How far to look first; it is widened for queries that find fewer than k, up to all lists.

        Returns:
            ids int64 [Q, k], -1 where the index has no more that are allowed; scores float32 [Q, k], -inf there.

        Raises:
            ReferenceSetError: If the queries are of another width.
        """
        if queries_QD.shape[1] != self.index.d:
            raise ReferenceSetError(
                f"queries of width {queries_QD.shape[1]}, {self.folder.uri} is of width {self.index.d}",
                expected="embeddings of the same checkpoint",
                remedy="embed the query with the checkpoint of the index",
            )
        ids_QK, scores_QK = no_neighbors(len(queries_QD), k)
        for start in range(0, len(queries_QD), _QUERIES_AT_ONCE):
            rows = np.arange(start, min(start + _QUERIES_AT_ONCE, len(queries_QD)))
            ids_QK[rows], scores_QK[rows] = self._complete(queries_QD, rows, k, allowed, params or self.params)
        return ids_QK, scores_QK

    def _complete(
        self, queries_QD: Float32Matrix, rows: Int64Array, k: int, allowed: Allowed | None, params: SearchParams
    ) -> Neighbors:
        """Neighbours of some queries; those whose lists hold too few look into more."""
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

    def _ask(self, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed: Allowed | None) -> Neighbors:
        if isinstance(self._searchers, Searcher):
            return self._searchers.search(queries_QD, k, params, allowed)
        queries = self._executor.share(queries_QD)
        answers = [search("search", queries, k, params, allowed) for search in self._searchers]
        return merge([wait() for wait in answers], k)

    @cached_property
    def _nlist(self) -> int:
        return n_lists(empty_index(self.index.factory, self.index.d))

    @cached_property
    def _searchers(self) -> Searcher | list[Callable[..., Any]]:
        """The shards, opened here; or the actors that have opened them, which end with this object."""
        nodes = self._executor.nodes
        n_actors = self.actors if self.actors is not None else len(nodes) if len(nodes) > 1 else 0
        if n_actors == 0:
            return Searcher(self.folder, self.index.shards)
        groups = np.array_split(np.arange(len(self.index.shards)), min(n_actors, len(self.index.shards)))
        threads = max(1, sum(nodes) // len(groups) // 2)  # the other half of the cores is left to others' tasks
        held = [tuple(self.index.shards[place] for place in group) for group in groups]
        calls = [(self.folder, shards, threads) for shards in held]
        return self._executor.actors(_Group, calls, cpus=min(threads, max(nodes)))

    def exact(self, queries_QD: Float32Matrix, k: int) -> Neighbors:
        """The k nearest by comparing with every vector that the index keeps."""
        queries = self._executor.share(queries_QD)
        calls = [(self.folder, shard, queries, k) for shard in self.index.shards]
        return merge(self._executor.tasks(_search_exactly, calls), k)

    def labels(self, neighbor_ids_QK: Int64Array, columns: Sequence[str]) -> pa.Table:
        """soma_joinid and label columns of the cells that are somebody's neighbour."""
        ids = np.unique(neighbor_ids_QK)
        asked = self._executor.share(ids[ids != NONE])
        calls = [(self.folder, shard.labels, asked, list(columns)) for shard in self.index.shards]
        tables = self._executor.tasks(_read_labels, calls, cpus=0.5)
        return pa.concat_tables([table.unify_dictionaries() for table in tables])

    def cell_counts(self, column: str, condition: str | None = None) -> dict[str | None, int]:
        """Cells that have each value of a label column, by its text, None for null; of those that meet a condition.

        Args:
            column: Label column.
            condition: On the label columns, as `require` allows it; None for all cells.
        """
        calls = [(self.folder, shard.labels, column, condition) for shard in self.index.shards]
        counts: Counter[str | None] = Counter()
        for counted in self._executor.tasks(_count, calls, cpus=0.5):
            counts.update(counted)
        return dict(counts)

    def sample(self, n: int, seed: int, columns: Sequence[str]) -> tuple[Int64Array, Float32Matrix, pa.Table]:
        """Cells of the reference drawn evenly, the same for a seed, in the order of shards and rows.

        Args:
            n: Cells; all, where there are fewer.
            seed: Of the draw.
            columns: Label columns.

        Returns:
            ids int64 [n]; vectors float32 [n, d], of unit length, as exact as the index keeps them; and soma_joinid
            with the label columns, a row for each.
        """
        drawn = np.sort(
            np.random.default_rng(seed).choice(self.index.n_cells, min(n, self.index.n_cells), replace=False)
        )
        ends = np.cumsum([shard.n_cells for shard in self.index.shards])
        cut = np.split(drawn, np.searchsorted(drawn, ends)[:-1])
        calls = [
            (self.folder, shard, rows - (end - shard.n_cells), list(columns))
            for shard, end, rows in zip(self.index.shards, ends, cut, strict=True)
        ]
        ids, vectors, tables = zip(*self._executor.tasks(_take, calls), strict=True)
        labels = pa.concat_tables([table.unify_dictionaries() for table in tables])
        return np.concatenate(ids), np.concatenate(vectors), labels


class _Group:
    """An actor that holds some shards open; its state is files, so that it may be started again."""

    def __init__(self, folder: Folder, shards: tuple[ShardDescription, ...], threads: int) -> None:
        set_threads(threads)
        self._searcher = Searcher(folder, shards)

    def search(self, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed: Allowed | None) -> Neighbors:
        return self._searcher.search(queries_QD, k, params, allowed)


def _search_exactly(folder: Folder, shard: ShardDescription, queries_QD: Float32Matrix, k: int) -> Neighbors:
    set_threads(1)
    return Searcher(folder, [shard]).exact(queries_QD, k)


def _take(
    folder: Folder, shard: ShardDescription, rows: Int64Array, columns: list[str]
) -> tuple[Int64Array, Float32Matrix, pa.Table]:
    opened = Searcher(folder, [shard]).shards[0]
    vectors_ND = opened.vectors(rows)
    vectors_ND /= np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(opened.ids_N)[rows], vectors_ND, opened.labels([JOINID, *columns]).take(pa.array(rows))


def _read_labels(folder: Folder, name: str, asked: Int64Array, columns: list[str]) -> pa.Table:
    with folder.open(name) as stream:
        return pq.read_table(stream, columns=[JOINID, *columns], filters=pc.field(JOINID).isin(pa.array(asked)))


def _count(folder: Folder, name: str, column: str, condition: str | None) -> dict[str | None, int]:
    counted = labels_that_meet(folder, name, [column], condition)[column].cast(pa.string()).value_counts()
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}


def labels_that_meet(folder: Folder, name: str, columns: Sequence[str], condition: str | None) -> pa.Table:
    """Columns of a label table, of the cells that meet a condition as `Reference.require` allows it."""
    with folder.open(name) as stream:
        opened = pq.ParquetFile(stream)
        met = condition_of(condition, opened.schema_arrow)
        labels = opened.read(columns=sorted({*columns, *(met.columns() if met else ())})).unify_dictionaries()
    kept = labels.select(list(columns))
    return kept if met is None else kept.filter(pa.array(met.mask(labels)))
