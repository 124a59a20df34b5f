"""Search in opened shards, in two steps.

First the codes, which are in memory, give candidates of each shard, as many per neighbour as the target recall of the
index takes (`SearchParams.n_candidates`). Then candidates are re-ranked by their vectors in half precision, which are
read from a memory map: 2 d bytes of disk per candidate, and no memory that the system cannot reclaim. A shard on an
object store is copied to a local temporary folder when it is opened: a query reads some hundred vectors at random, too
many for a request each.

A score depends on the query and the neighbour only, and the candidates of a shard on the query and the shard only, so
it does not matter which process has which shards open.
"""

import io
import math
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index.description import CENTRE
from scgpt_ray.index.label_columns import of_rows, read_labels
from scgpt_ray.index.neighbor_filter import NeighborFilter, masked
from scgpt_ray.index.removal import removed_ids
from scgpt_ray.index.search import (
    NONE,
    Mask,
    Neighbors,
    candidates,
    exact_search,
    merge,
    no_neighbors,
    scores_of,
    search,
)
from scgpt_ray.index.shard import HALF, open_array, open_faiss
from scgpt_ray.records import ShardDescription
from scgpt_ray.schema import JOINID, Float32Matrix, Int64Array
from scgpt_ray.storage import Folder
from scgpt_ray.temporary_folder import temporary_folder

CHOSEN_K = 10
"""Number of neighbours at which search parameters are chosen."""

EXACT_ROWS = 20_000
"""If a filter leaves at most this many cells of a shard, they are searched exactly."""

_PER_NEIGHBOR = (2, 10)  # fewest and most candidates per neighbour that `rerank` stands for
_SPARE = 16  # extra candidates sorted, so that most ties are resolved at once
_EXACT_BLOCK = 16_384


@dataclass(frozen=True)
class SearchParams:
    """Parameters of an approximate search.

    Attributes:
        nprobe: Inverted lists searched per shard.
        rerank: Candidates re-ranked per shard for ten neighbours; ignored by an exact index.
    """

    nprobe: int
    rerank: int

    def n_candidates(self, k: int) -> int:
        """Candidates for k neighbours: as many per neighbour as for ten, but two to ten; at least `rerank`."""
        fewest, most = _PER_NEIGHBOR
        return max(self.rerank, math.ceil(k * min(max(self.rerank / CHOSEN_K, fewest), most)))


@dataclass(frozen=True)
class Shard:
    """An opened shard.

    Attributes:
        description: Names of its files.
        index: The faiss index, whose ids are rows.
        ids_N: int64 [n], soma_joinid of each row; memory-mapped.
        vectors_ND: float16 [n, d], vectors minus the centre; memory-mapped; None if the index is exact.
        centre_D: float32 [d].
        left_N: bool [n], rows that are part of the index; None if all are.
    """

    folder: Folder
    description: ShardDescription
    index: faiss.Index
    ids_N: Int64Array
    vectors_ND: npt.NDArray[np.float16] | None
    centre_D: Float32Matrix
    left_N: Mask | None = None

    @classmethod
    def open(cls, folder: Folder, description: ShardDescription, centre_D: Float32Matrix, cache: Path) -> "Shard":
        """Open the files of a shard.

        Raises:
            ReferenceSetError: If one is missing, incomplete, or has another number of rows than the description says.
        """
        try:
            index = open_faiss(folder.fetch(description.name, cache))
            rows = (description.n_cells,)
            ids_N = open_array(folder.fetch(description.ids, cache), np.int64, rows)
            vectors_ND = None
            if description.vectors is not None:
                vectors_ND = open_array(folder.fetch(description.vectors, cache), HALF, (*rows, index.d))
        except FileNotFoundError as error:
            raise ReferenceSetError(
                f"{error.filename or error} is missing", expected="every file of the index", remedy="build it again"
            ) from None
        left_N = None if description.removed is None else ~np.isin(ids_N, removed_ids(folder, description))
        return cls(folder, description, index, ids_N, vectors_ND, centre_D, left_N)

    @property
    def rows(self) -> Int64Array:
        """Rows that are part of the index, int64, ascending."""
        return np.arange(len(self.ids_N)) if self.left_N is None else np.flatnonzero(self.left_N)

    def rows_of(self, ids: Int64Array) -> Int64Array:
        """Rows of those of some cells that the shard holds and that are part of the index, int64 [some]."""
        if not len(self.ids_N):
            return np.empty(0, np.int64)
        row_of = np.minimum(np.searchsorted(self.ids_N, ids), len(self.ids_N) - 1)
        rows: Int64Array = row_of[self.ids_N[row_of] == ids]
        return rows if self.left_N is None else rows[self.left_N[rows]]

    def labels(self, columns: Sequence[str]) -> pa.Table:
        """Read label columns, one row per row of the shard."""
        with self.folder.open(self.description.labels) as stream:
            return pq.read_table(stream, columns=list(columns))

    def vectors(self, rows: Int64Array) -> Float32Matrix:
        """Vectors of some rows, float32 [some, d]; rounded to half precision unless the index is exact."""
        if self.vectors_ND is None:
            return np.asarray(self.index.reconstruct_batch(rows), np.float32)
        return self._differences(rows) + self.centre_D

    def _differences(self, rows: Int64Array) -> Float32Matrix:
        """Vectors of some rows minus the centre; the decoder of faiss gives what numpy's cast does in less time."""
        assert self.vectors_ND is not None, "an exact index has no differences"
        codes_ND = np.asarray(self.vectors_ND).view(np.uint8).take(rows, axis=0)
        decoder = faiss.ScalarQuantizer(self.vectors_ND.shape[1], faiss.ScalarQuantizer.QT_fp16)
        return np.asarray(decoder.decode(codes_ND), np.float32)

    def search(self, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed_N: Mask | None) -> Neighbors:
        """The k nearest: ids int64 [Q, k] and scores float32 [Q, k]."""
        if self.left_N is not None:
            allowed_N = self.left_N if allowed_N is None else allowed_N & self.left_N
        if not len(self.ids_N) or (allowed_N is not None and not allowed_N.any()):
            return no_neighbors(len(queries_QD), k)
        if self.vectors_ND is None:
            rows_QK, scores_QK = search(self.index, queries_QD, k, params.nprobe, allowed_N)
            return self._named(rows_QK), scores_QK
        if allowed_N is not None and (n_allowed := int(allowed_N.sum())) <= EXACT_ROWS:
            return self.exact(queries_QD, k, np.flatnonzero(allowed_N))
        # The cells that pass a filter are spread over more lists.
        share = 1.0 if allowed_N is None else n_allowed / len(allowed_N)
        nprobe = int(np.ceil(params.nprobe / share))
        rows_QR = candidates(self.index, queries_QD, params.n_candidates(k), nprobe, allowed_N)
        rows_QK, scores_QK = self._ranked(queries_QD, rows_QR, k)
        return self._named(rows_QK), scores_QK

    def exact(self, queries_QD: Float32Matrix, k: int, rows: Int64Array | None = None) -> Neighbors:
        """Exact search among some rows; all that are part of the index if None."""
        rows = self.rows if rows is None else rows
        blocks = (rows[start : start + _EXACT_BLOCK] for start in range(0, len(rows), _EXACT_BLOCK))
        return exact_search(((self.ids_N[block], self.vectors(block)) for block in blocks), queries_QD, k)

    def _ranked(self, queries_QD: Float32Matrix, rows_QR: Int64Array, k: int) -> Neighbors:
        """Re-rank candidates by their vectors and keep the k best."""
        scores_QR = scores_of(queries_QD, rows_QR, self._differences)
        scores_QR += np.einsum("qd,d->q", queries_QD, self.centre_D)[:, None]
        return _best(rows_QR, scores_QR, k)

    def _named(self, rows_QK: Int64Array) -> Int64Array:
        return np.where(rows_QK == NONE, NONE, np.asarray(self.ids_N)[np.maximum(rows_QK, 0)])


def _best(rows_QR: Int64Array, scores_QR: Float32Matrix, k: int) -> Neighbors:
    """`merge` of one result with many candidates: only the best are sorted."""
    n = k + _SPARE
    if rows_QR.shape[1] <= n:
        return merge([(rows_QR, scores_QR)], k)
    best_Qn = np.argpartition(-scores_QR, n - 1, axis=1)[:, :n]
    kept_Qn = np.take_along_axis(scores_QR, best_Qn, axis=1)
    rows_QK, scores_QK = merge([(np.take_along_axis(rows_QR, best_Qn, axis=1), kept_Qn)], k)
    tied = np.flatnonzero(scores_QK[:, -1] == kept_Qn.min(axis=1))
    rows_QK[tied], scores_QK[tied] = merge([(rows_QR[tied], scores_QR[tied])], k)
    return rows_QK, scores_QK


def drawn_rows(shards: Sequence[ShardDescription], n: int, seed: int) -> list[Int64Array]:
    """Draw n cells of all shards uniformly, all if there are fewer: ascending places in `Shard.rows`, int64 [some]."""
    ends = np.cumsum([shard.n_left for shard in shards])
    drawn = np.sort(np.random.default_rng(seed).choice(ends[-1], min(n, ends[-1]), replace=False))
    cut = np.split(drawn, np.searchsorted(drawn, ends)[:-1])
    return [rows - (end - shard.n_left) for rows, end, shard in zip(cut, ends, shards, strict=True)]


class Searcher:
    """Search in some shards of an index, which are opened by the first search."""

    def __init__(self, folder: Folder, shards: Sequence[ShardDescription]) -> None:
        self._folder, self._descriptions = folder, shards
        self._read: dict[tuple[str, str], pa.Array] = {}

    @cached_property
    def _cache(self) -> Path:
        """A temporary folder, deleted with this object."""
        opened = ExitStack()
        weakref.finalize(self, opened.close)
        return opened.enter_context(temporary_folder())

    @cached_property
    def shards(self) -> list[Shard]:
        """The opened shards."""
        centre_D = np.load(io.BytesIO(self._folder.read(CENTRE)), allow_pickle=False)
        cache = self._folder.path if self._folder.is_local else self._cache
        return [Shard.open(self._folder, description, centre_D, cache) for description in self._descriptions]

    def search(
        self, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed: NeighborFilter | None = None
    ) -> Neighbors:
        """The k nearest neighbours over all shards: ids int64 [Q, k], -1 for none, and scores float32 [Q, k]."""
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        return merge([self._search(shard, queries_QD, k, params, allowed) for shard in self.shards], k)

    def _search(
        self, shard: Shard, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed: NeighborFilter | None
    ) -> Neighbors:
        labels = None if allowed is None else self._labels(shard, allowed.needs(self._schema))
        ids_QK, scores_QK = no_neighbors(len(queries_QD), k)
        for rows, mask_N in masked(allowed, len(queries_QD), labels):
            ids_QK[rows], scores_QK[rows] = shard.search(queries_QD[rows], k, params, mask_N)
        return ids_QK, scores_QK

    def labels(self, ids: Int64Array, columns: Sequence[str]) -> pa.Table:
        """soma_joinid and label columns of those of some cells that are in these shards; int64 [n], each once."""
        tables = []
        for shard in self.shards:
            rows = shard.rows_of(ids)
            labels = {name: of_rows(self._column(shard, name), pa.array(rows)) for name in columns}
            tables.append(pa.table({JOINID: pa.array(np.asarray(shard.ids_N[rows])), **labels}))
        return pa.concat_tables(tables)

    def _labels(self, shard: Shard, columns: Sequence[str]) -> pa.Table:
        return pa.table({name: self._column(shard, name) for name in columns})

    def _column(self, shard: Shard, name: str) -> pa.Array:
        """A label column of a shard, read once: many blocks of queries have the same filter, and look up the same."""
        key = shard.description.name, name
        if key not in self._read:
            self._read[key] = read_labels(self._folder, shard.description, name)
        return self._read[key]

    @cached_property
    def _schema(self) -> pa.Schema:
        with self._folder.open(self._descriptions[0].labels) as stream:
            return pq.read_schema(stream)

    def exact(self, queries_QD: Float32Matrix, k: int) -> Neighbors:
        """Exact search over all shards."""
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        return merge([shard.exact(queries_QD, k) for shard in self.shards], k)
