"""A searcher: some shards of an index, held open, and the search through them in two steps.

First the codes, which are in memory, name `rerank` candidates, or more where many neighbours are wanted; then these are
compared with the query by their vectors in half precision, which are read from a memory map: 2 d bytes of disk a
candidate, no memory that could not be given back. On an object store vectors and codes are copied to a local scratch
folder when the shard is opened: a search reads some hundred vectors a query from random places, too many for requests
of their own.

A neighbour's score depends on the query and the neighbour alone, and the candidates of a shard on the shard and the
query alone. So it does not matter which process holds which shard.
"""

import io
import shutil
import tempfile
import weakref
from collections.abc import Sequence
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
from scgpt_ray.index.neighbor_filter import Allowed, masked
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
from scgpt_ray.schema import Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

EXACT_ROWS = 20_000
"""Cells that a filter leaves in a shard and that are compared one by one: no lists to miss."""

LEAST_PER_NEIGHBOR = 10
"""Candidates for each neighbour wanted, however few suffice for ten."""

_SPARE = 16  # candidates ordered beyond those wanted, so that ties seldom reach behind them
_EXACT_BLOCK = 16_384


@dataclass(frozen=True)
class SearchParams:
    """How far a search looks.

    Attributes:
        nprobe: Inverted lists of each shard.
        rerank: Candidates of each shard, ten at least for each neighbour wanted; not read where the index is exact.
    """

    nprobe: int
    rerank: int


@dataclass(frozen=True)
class Shard:
    """An opened shard.

    Attributes:
        folder: The index folder.
        description: Its files.
        index: faiss, by row.
        ids_N: int64 [n], memory-mapped.
        vectors_ND: float16 [n, d], memory-mapped, around the centre; None where the index is exact.
        centre_D: float32 [d].
    """

    folder: Folder
    description: ShardDescription
    index: faiss.Index
    ids_N: Int64Array
    vectors_ND: npt.NDArray[np.float16] | None
    centre_D: Float32Matrix

    @classmethod
    def open(cls, folder: Folder, description: ShardDescription, centre_D: Float32Matrix, cache: Path) -> "Shard":
        """Open the files of a shard.

        Raises:
            ReferenceSetError: If one is missing, torn, or holds other rows than the description says.
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
        return cls(folder, description, index, ids_N, vectors_ND, centre_D)

    def labels(self, columns: Sequence[str]) -> pa.Table:
        """Label columns, a row for each of the shard."""
        with self.folder.open(self.description.labels) as stream:
            return pq.read_table(stream, columns=list(columns))

    def vectors(self, rows: Int64Array) -> Float32Matrix:
        """Unit vectors of some rows, float32 [some, d]: exact, or in half precision around the centre."""
        if self.vectors_ND is None:
            return np.asarray(self.index.reconstruct_batch(rows), np.float32)
        return np.asarray(self.vectors_ND[rows].astype(np.float32) + self.centre_D)

    def search(self, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed_N: Mask | None) -> Neighbors:
        """The k nearest: ids int64 [Q, k] and scores float32 [Q, k]."""
        if not len(self.ids_N) or (allowed_N is not None and not allowed_N.any()):
            return no_neighbors(len(queries_QD), k)
        if self.vectors_ND is None:
            rows_QK, scores_QK = search(self.index, queries_QD, k, params.nprobe, allowed_N)
            return self._named(rows_QK), scores_QK
        if allowed_N is not None and (n_allowed := int(allowed_N.sum())) <= EXACT_ROWS:
            return self.exact(queries_QD, k, np.flatnonzero(allowed_N))
        # What a filter leaves is spread over more lists.
        share = 1.0 if allowed_N is None else n_allowed / len(allowed_N)
        nprobe = int(np.ceil(params.nprobe / share))
        n = max(params.rerank, LEAST_PER_NEIGHBOR * k)
        rows_QR = candidates(self.index, queries_QD, n, nprobe, allowed_N)
        rows_QK, scores_QK = self._ranked(queries_QD, rows_QR, k)
        return self._named(rows_QK), scores_QK

    def exact(self, queries_QD: Float32Matrix, k: int, rows: Int64Array | None = None) -> Neighbors:
        """The k nearest among some rows, or all, by comparing with each."""
        wanted = np.arange(len(self.ids_N)) if rows is None else rows
        blocks = (wanted[start : start + _EXACT_BLOCK] for start in range(0, len(wanted), _EXACT_BLOCK))
        return exact_search(((self.ids_N[block], self.vectors(block)) for block in blocks), queries_QD, k)

    def _ranked(self, queries_QD: Float32Matrix, rows_QR: Int64Array, k: int) -> Neighbors:
        """The k best of the candidates by their vectors."""
        halves_ND = self.vectors_ND
        assert halves_ND is not None
        scores_QR = scores_of(queries_QD, rows_QR, lambda rows: halves_ND[rows].astype(np.float32))
        scores_QR += np.einsum("qd,d->q", queries_QD, self.centre_D)[:, None]
        return _best(rows_QR, scores_QR, k)

    def _named(self, rows_QK: Int64Array) -> Int64Array:
        if not len(self.ids_N):
            return rows_QK
        return np.where(rows_QK == NONE, NONE, np.asarray(self.ids_N)[np.maximum(rows_QK, 0)])


def _best(rows_QR: Int64Array, scores_QR: Float32Matrix, k: int) -> Neighbors:
    """As `merge` of one result, for many candidates: only the best are put in order."""
    n = k + _SPARE
    if rows_QR.shape[1] <= n:
        return merge([(rows_QR, scores_QR)], k)
    best_Qn = np.argpartition(-scores_QR, n - 1, axis=1)[:, :n]
    kept_Qn = np.take_along_axis(scores_QR, best_Qn, axis=1)
    rows_QK, scores_QK = merge([(np.take_along_axis(rows_QR, best_Qn, axis=1), kept_Qn)], k)
    tied = np.flatnonzero(scores_QK[:, -1] == kept_Qn.min(axis=1))
    rows_QK[tied], scores_QK[tied] = merge([(rows_QR[tied], scores_QR[tied])], k)
    return rows_QK, scores_QK


class Searcher:
    """Some shards of an index, open until it is dropped.

    Args:
        folder: The index folder.
        shards: Which of its shards.
    """

    def __init__(self, folder: Folder, shards: Sequence[ShardDescription]) -> None:
        self._folder, self._descriptions = folder, shards
        self._read: dict[tuple[str, tuple[str, ...]], pa.Table] = {}

    @cached_property
    def _cache(self) -> Path:
        """A folder for copies, which goes with this object."""
        place = Path(tempfile.mkdtemp(prefix="scgpt-ray-index-"))
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        return place

    @cached_property
    def shards(self) -> list[Shard]:
        """The opened shards."""
        centre_D = np.load(io.BytesIO(self._folder.read(CENTRE)), allow_pickle=False)
        cache = self._folder.path if self._folder.is_local else self._cache
        return [Shard.open(self._folder, description, centre_D, cache) for description in self._descriptions]

    def search(
        self, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed: Allowed | None = None
    ) -> Neighbors:
        """The k nearest neighbours in all shards: ids int64 [Q, k], -1 for none, and scores float32 [Q, k]."""
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        return merge([self._search(shard, queries_QD, k, params, allowed) for shard in self.shards], k)

    def _search(
        self, shard: Shard, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed: Allowed | None
    ) -> Neighbors:
        labels = None if allowed is None else self._labels(shard, tuple(allowed.needs(self._schema)))
        ids_QK, scores_QK = no_neighbors(len(queries_QD), k)
        for rows, mask_N in masked(allowed, len(queries_QD), labels):
            ids_QK[rows], scores_QK[rows] = shard.search(queries_QD[rows], k, params, mask_N)
        return ids_QK, scores_QK

    def _labels(self, shard: Shard, columns: tuple[str, ...]) -> pa.Table:
        """Labels of a shard, read once: one filter is asked for with many blocks of queries."""
        key = shard.description.name, columns
        if key not in self._read:
            self._read[key] = shard.labels(columns)
        return self._read[key]

    @cached_property
    def _schema(self) -> pa.Schema:
        with self._folder.open(self._descriptions[0].labels) as stream:
            return pq.read_schema(stream)

    def exact(self, queries_QD: Float32Matrix, k: int) -> Neighbors:
        """The same by comparing with every vector."""
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        return merge([shard.exact(queries_QD, k) for shard in self.shards], k)
