"""The codes of several shards, searched as if they were one index.

A query is assigned to inverted lists once, and the best codes are those of all shards together. Codes of fast scan,
which are in memory anyway, are merged list by list when they are opened, so that look-up tables and the scan do not
depend on the number of shards either. Other codes stay in the mapped files of their shards.

Shapes: Q queries, D width, R candidates, S shards.
"""

from collections.abc import Iterable

import faiss
import numpy as np

from scgpt_ray.atlas.malloc import return_freed_memory
from scgpt_ray.index.assigned import Assigned, Bitmap, assign, find_assigned
from scgpt_ray.index.factory import n_lists
from scgpt_ray.index.merged_lists import can_merge, merge_lists
from scgpt_ray.index.search import NONE, IdsOf, Neighbors, best, no_neighbors
from scgpt_ray.schema import Float32Matrix, Int64Array

_SPARE = 16  # extra codes requested, so that most ties are resolved by the first search
_TIED_CELLS = 2**24  # places in memory while ties are resolved: 200 MB


class Codes:
    """Opened codes.

    A code has a place: the shard times 2^bits, plus its row.

    Args:
        opened: The faiss index of each shard; read one after the other.
        bits: The number of rows of a shard is at most 2^bits.
    """

    def __init__(self, opened: Iterable[faiss.Index], bits: int) -> None:
        self._bits = bits
        held = [(shard, index) for shard, index in enumerate(opened) if index.ntotal]
        self.n = sum(int(index.ntotal) for _, index in held)
        self._pieces = held
        self.n_lists = n_lists(held[0][1]) if held else 1
        self._is_merged = len(held) > 1 and can_merge(held[0][1])
        if self._is_merged:
            self._pieces = [(0, merge_lists([index for _, index in held], [shard << bits for shard, _ in held]))]
            del held
            return_freed_memory()

    def nearest(
        self, queries_QD: Float32Matrix, n: int, nprobe: int, ids_of: IdsOf, allowed: Bitmap | None = None
    ) -> Neighbors:
        """The n nearest codes; of equally near ones in the last place, those of the smallest ids.

        Args:
            queries_QD: float32 [Q, d].
            n: Number of codes.
            nprobe: Inverted lists to search, at most all.
            ids_of: Numbers of places that are in the order of their ids.
            allowed: Places that may be found; None for all.

        Returns:
            places int64 [Q, n] and scores float32 [Q, n], filled up with -1 and -inf; in no particular order.
        """
        if not self._pieces or not len(queries_QD):
            return no_neighbors(len(queries_QD), n)
        assigned = assign(self._pieces[0][1], queries_QD, nprobe)
        found = [self._nearest(piece, assigned, n, n + _SPARE, ids_of, allowed) for piece in self._pieces]
        return found[0] if len(found) == 1 else best(found, n, ids_of)

    def _nearest(
        self,
        piece: tuple[int, faiss.Index],
        assigned: Assigned,
        n: int,
        width: int,
        ids_of: IdsOf,
        allowed: Bitmap | None,
    ) -> Neighbors:
        """The n nearest codes of a piece, found by a search for `width`, or more for queries whose ties need it."""
        places_QW, scores_QW = self._find(piece, assigned, min(width, max(n + 1, self.n)), allowed)
        is_tied_Q = (scores_QW[:, n - 1] == scores_QW[:, n]) & (places_QW[:, n] != NONE)
        is_open_Q = is_tied_Q & (scores_QW[:, n - 1] == scores_QW[:, -1]) & (width < self.n)
        _order_ties(places_QW, scores_QW, n, np.flatnonzero(is_tied_Q & ~is_open_Q), ids_of)
        places_QR, scores_QR = places_QW[:, :n], scores_QW[:, :n]
        unresolved, wider = np.flatnonzero(is_open_Q), 4 * width
        at_once = max(1, _TIED_CELLS // wider)
        for start in range(0, len(unresolved), at_once):
            some = unresolved[start : start + at_once]
            places_QR[some], scores_QR[some] = self._nearest(piece, assigned.of(some), n, wider, ids_of, allowed)
        return places_QR, scores_QR

    def _find(
        self, piece: tuple[int, faiss.Index], assigned: Assigned, width: int, allowed: Bitmap | None
    ) -> Neighbors:
        """Places and scores of the `width` nearest codes of a piece, best first."""
        shard, index = piece
        if allowed is not None and not self._is_merged:
            n_bytes = 1 << self._bits >> 3
            allowed = allowed[shard * n_bytes : (shard + 1) * n_bytes]
        ids_QW, scores_QW = find_assigned(index, assigned, width, allowed)
        is_none_QW = ids_QW == NONE
        if shard:
            ids_QW += shard << self._bits
        ids_QW[is_none_QW], scores_QW[is_none_QW] = NONE, -np.inf
        return ids_QW, scores_QW


def _order_ties(places_QW: Int64Array, scores_QW: Float32Matrix, n: int, rows: Int64Array, ids_of: IdsOf) -> None:
    """Order those places of some rows by id, in place, whose score is the n-th best; scores are in falling order."""
    places_qW = places_QW[rows]
    row_T, column_T = np.nonzero(scores_QW[rows] == scores_QW[rows, n - 1 : n])
    tied_T = places_qW[row_T, column_T]
    places_qW[row_T, column_T] = tied_T[np.lexsort((ids_of(tied_T), row_T))]
    places_QW[rows] = places_qW
