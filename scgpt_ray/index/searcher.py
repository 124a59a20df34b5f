"""Search in opened shards, in two steps.

First the codes, which are in memory, give candidates, as many per neighbour as the target recall of the index takes
(`SearchParams.n_candidates`): the best of all shards together. Then candidates are re-ranked by their vectors in half
precision, which are read from a memory map: 2 d bytes of disk per candidate, and no memory that the system cannot
reclaim. A shard on an object store is copied to a local temporary folder when it is opened: a query reads some hundred
vectors at random, too many for a request each.

Cells are compared exactly where a filter leaves few of them, and in an exact index.

Several processes that have different shards open are asked in rounds (`rounds.nearest`). Both scores of a neighbour
depend on the query and the neighbour only, and what is decided is decided for all shards together. So it does not
matter which process has which shards open, or how cells are divided into shards of a template.

Shapes: Q queries, K neighbours, D width, R candidates, G groups of queries with the same filter.
"""

import io
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.index.assigned import Bitmap
from scgpt_ray.index.codes import Codes
from scgpt_ray.index.description import CENTRE
from scgpt_ray.index.label_columns import of_rows, read_labels
from scgpt_ray.index.neighbor_filter import NeighborFilter
from scgpt_ray.index.opened_shard import Shard, decoded, open_codes
from scgpt_ray.index.rounds import Candidates, Reach, nearest
from scgpt_ray.index.search import NONE, Mask, Neighbors, best, merge, no_neighbors, scores_of
from scgpt_ray.records import ShardDescription
from scgpt_ray.schema import JOINID, Float32Matrix, Int64Array
from scgpt_ray.storage import Folder
from scgpt_ray.temporary_folder import temporary_folder

CHOSEN_K = 10
"""Number of neighbours at which search parameters are chosen."""

_PER_NEIGHBOR = (2, 10)  # fewest and most candidates per neighbour that `rerank` stands for

_FEW = 0.01
"""Share of the vectors from which on the system may read ahead.

Of 2,000,000 vectors of width 512 on a disk that reads ahead by 8 MB, not cached, one query (k 50, 500 candidates) took
1.0 s with reading ahead and 0.06 s without, 100 queries 1.8 and 2.9 s, 2,000 queries 2.8 and 23.5 s.
"""


@dataclass(frozen=True)
class SearchParams:
    """Parameters of an approximate search.

    Attributes:
        nprobe: Inverted lists searched.
        rerank: Candidates re-ranked for ten neighbours, of all shards together; ignored by an exact index.
    """

    nprobe: int
    rerank: int

    def n_candidates(self, k: int) -> int:
        """Candidates for k neighbours: as many per neighbour as for ten, but two to ten; at least `rerank`."""
        fewest, most = _PER_NEIGHBOR
        return max(self.rerank, math.ceil(k * min(max(self.rerank / CHOSEN_K, fewest), most)))


class Searcher:
    """Search in some shards of an index, which are opened by the first search."""

    def __init__(self, folder: Folder, shards: Sequence[ShardDescription]) -> None:
        self._folder, self._descriptions = folder, shards
        self._read: dict[tuple[str, str], pa.Array] = {}
        most = max((shard.n_cells for shard in shards), default=0)
        self._bits = max(3, (max(1, most) - 1).bit_length())  # rows of a shard; a bitmap has whole bytes for each

    @cached_property
    def _cache(self) -> Path:
        """A local folder with the files; a temporary one is deleted with this object."""
        if self._folder.is_local:
            return self._folder.path
        opened = ExitStack()
        weakref.finalize(self, opened.close)
        return opened.enter_context(temporary_folder())

    @cached_property
    def shards(self) -> list[Shard]:
        """The opened shards."""
        centre_D = np.load(io.BytesIO(self._folder.read(CENTRE)), allow_pickle=False)
        return [Shard.open(self._folder, description, centre_D, self._cache) for description in self._descriptions]

    @cached_property
    def _held(self) -> list[Shard]:
        """Those that hold cells. A cell has a place: that of its shard in this list times 2^bits, plus its row."""
        return [shard for shard in self.shards if shard.description.n_cells]

    @cached_property
    def _codes(self) -> Codes:
        opened = (open_codes(self._folder, shard.description, self._cache) for shard in self._held)
        return Codes(opened, self._bits)

    def search(
        self, queries_QD: Float32Matrix, k: int, params: SearchParams, allowed: NeighborFilter | None = None
    ) -> Neighbors:
        """The k nearest neighbours over all shards: ids int64 [Q, k], -1 for none, and scores float32 [Q, k]."""

        def ask(method: str, asked: Any, *arguments: Any, own: Sequence[Any] | None = None) -> list[Any]:
            return [getattr(self, method)(asked, *arguments, *(own or ()))]

        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        if self._descriptions[0].vectors is None:
            return self.among(queries_QD, k, allowed)
        return nearest(ask, queries_QD, k, params.nprobe, params.n_candidates(k), allowed, alone=True)

    def among(self, queries_QD: Float32Matrix, k: int, allowed: NeighborFilter | None) -> Neighbors:
        """Exact search among the cells that each query may find."""
        ids_QK, scores_QK = no_neighbors(len(queries_QD), k)
        for rows, masks in self._groups(len(queries_QD), allowed):
            found = [shard.among(queries_QD[rows], k, mask) for shard, mask in zip(self._held, masks, strict=True)]
            if found:
                ids_QK[rows], scores_QK[rows] = merge(found, k)
        return ids_QK, scores_QK

    def reach(self, allowed: NeighborFilter) -> Reach:
        """How many cells a filter leaves."""
        cells_G = np.zeros(len(allowed.groups), np.int64)
        for rows, masks in self._groups(len(allowed.group_Q), allowed):
            left = [shard.left(mask) for shard, mask in zip(self._held, masks, strict=True)]
            cells_G[allowed.group_Q[rows[0]]] = sum(int(mask.sum()) for mask in left if mask is not None)
        return Reach(cells_G, sum(shard.n_left for shard in self._descriptions), self._codes.n_lists)

    def candidates(
        self, queries_QD: Float32Matrix, nprobe_G: Int64Array, n: int, allowed: NeighborFilter | None, named: bool
    ) -> Candidates:
        """The n cells with the nearest codes; `nprobe_G` lists are searched for the queries of a group."""
        places_QR, scores_QR = no_neighbors(len(queries_QD), n)
        for rows, masks in self._groups(len(queries_QD), allowed):
            group = 0 if allowed is None else allowed.group_Q[rows[0]]
            bitmap = self._left if allowed is None else self._bitmap(masks)
            found = self._codes.nearest(queries_QD[rows], n, int(nprobe_G[group]), self._in_order, bitmap)
            places_QR[rows], scores_QR[rows] = found
        return Candidates(places_QR, self._ids_of(places_QR) if named else None, scores_QR)

    def ranked(self, queries_QD: Float32Matrix, k: int, places_QR: Int64Array) -> Neighbors:
        """Re-rank candidates by their vectors, and keep the k best."""
        if not self._held:
            return no_neighbors(len(queries_QD), k)
        n_cells = sum(shard.description.n_cells for shard in self._held)
        for shard in self._held:
            shard.expect(few=places_QR.size < _FEW * n_cells)
        scores_QR = scores_of(queries_QD, places_QR, self._differences)
        scores_QR += np.einsum("qd,d->q", queries_QD, self._held[0].centre_D)[:, None]
        places_QK, scores_QK = best([(places_QR, scores_QR)], k, self._in_order)
        return self._ids_of(places_QK), scores_QK

    def _groups(
        self, n_queries: int, allowed: NeighborFilter | None
    ) -> Iterator[tuple[Int64Array, Sequence[Mask | None]]]:
        """Yield rows of queries that may find the same cells, int64 [some], and which of each shard."""
        if allowed is None:
            yield np.arange(n_queries), [None] * len(self._held)
            return
        columns = allowed.needs(self._schema)
        for found in zip(*(allowed.masks(self._labels(shard, columns)) for shard in self._held), strict=True):
            yield found[0][0], [mask for _, mask in found]

    @cached_property
    def _left(self) -> Bitmap | None:
        """The places of cells that are part of the index; None for all."""
        return self._bitmap([None] * len(self._held))

    def _bitmap(self, masks: Sequence[Mask | None]) -> Bitmap | None:
        """The places of those of some cells that are part of the index; None for all."""
        left = [shard.left(mask) for shard, mask in zip(self._held, masks, strict=True)]
        if all(mask is None for mask in left):
            return None
        bitmap = np.zeros((len(left), 1 << self._bits >> 3), np.uint8)
        for bits_B, shard, mask in zip(bitmap, self._held, left, strict=True):
            packed = np.packbits(np.ones(len(shard.ids_N), np.bool_) if mask is None else mask, bitorder="little")
            bits_B[: len(packed)] = packed
        return bitmap.ravel()

    def _by_shard(self, places_N: Int64Array) -> Iterator[tuple[Shard, Int64Array | slice, Int64Array]]:
        """Yield shards that hold some of the places, where these are among the places, and their rows."""
        if len(self._held) <= 1:
            yield from ((shard, slice(None), places_N) for shard in self._held)
            return
        shard_N = (places_N >> self._bits).astype(np.uint16)
        order = np.argsort(shard_N, kind="stable")  # linear for numbers of two bytes
        ends = np.searchsorted(shard_N, np.arange(1, len(self._held), dtype=np.uint16), sorter=order)
        for shard, where in zip(self._held, np.split(order, ends), strict=True):
            if len(where):
                yield shard, where, places_N[where] & ((1 << self._bits) - 1)

    def _in_order(self, places: Int64Array) -> Int64Array:
        """Numbers of places that are in the order of their soma_joinids."""
        return places if self._is_in_order else self._ids_of(places)

    @cached_property
    def _is_in_order(self) -> bool:
        """Whether each shard has larger soma_joinids than those before it, as it is built."""
        return all(before.ids_N[-1] < shard.ids_N[0] for before, shard in pairwise(self._held))

    def _ids_of(self, places: Int64Array) -> Int64Array:
        """soma_joinids of places of any shape; -1 of -1."""
        ids = np.full(places.shape, NONE, np.int64)
        is_cell = places != NONE
        of_cells = ids[is_cell]
        for shard, where, rows in self._by_shard(places[is_cell]):
            of_cells[where] = shard.ids_N[rows]
        ids[is_cell] = of_cells
        return ids

    def _differences(self, places_N: Int64Array) -> Float32Matrix:
        """Vectors minus the centre, float32 [N, D]."""
        halves = np.empty((len(places_N), 2 * len(self._held[0].centre_D)), np.uint8)
        for shard, where, rows in self._by_shard(places_N):
            halves[where] = shard.halves(rows)
        return decoded(halves)

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
