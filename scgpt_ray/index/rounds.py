"""The rounds in which processes that have different shards open are asked for neighbours.

How many cells a filter leaves; the candidates, of which the best of all shards together are kept; their neighbours by
vectors. What is decided in between depends on the sums only, not on which process has which shards open.

Shapes: Q queries, K neighbours, D width, R candidates, G groups of queries with the same filter.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from scgpt_ray.index.neighbor_filter import NeighborFilter
from scgpt_ray.index.search import NONE, Neighbors, best, merge, no_neighbors
from scgpt_ray.schema import Float32Matrix, Int64Array

EXACT_ROWS = 20_000
"""If a filter leaves at most this many cells, they are searched exactly."""

_CODES_PER_VECTOR = 100  # codes that are scanned in the time in which a vector is read at random and compared


class Ask(Protocol):
    """Calls a method of all searchers."""

    def __call__(self, method: str, asked: Any, *arguments: Any, own: Sequence[Any] | None = None) -> list[Any]:
        """Answers in the order of the searchers; the last argument of each is its element of `own`, if given."""


class Reach(NamedTuple):
    """What a filter leaves of some shards.

    Attributes:
        cells_G: int64 [G], cells that queries of a group may find.
        n_cells: All cells.
        n_lists: Inverted lists; 1 without any.
    """

    cells_G: Int64Array
    n_cells: int
    n_lists: int


class Candidates(NamedTuple):
    """Candidates of some shards.

    Attributes:
        places_QR: int64 [Q, R], cells as their searcher names them; -1 for none.
        ids_QR: int64 [Q, R], their soma_joinids; None if there is one searcher.
        scores_QR: float32 [Q, R], estimated from codes.
    """

    places_QR: Int64Array
    ids_QR: Int64Array | None
    scores_QR: Float32Matrix


def nearest(
    ask: Ask, queries_QD: Float32Matrix, k: int, nprobe: int, n: int, allowed: NeighborFilter | None, *, alone: bool
) -> Neighbors:
    """The k nearest neighbours in the shards of all searchers.

    Args:
        ask: Calls the searchers (`searcher.Searcher`).
        queries_QD: float32 [Q, D].
        k: Number of neighbours.
        nprobe: Inverted lists to search; more for queries whose filter leaves a part of the cells, which are spread
            over more lists.
        n: Candidates to re-rank.
        allowed: Cells that each query may find; None for all.
        alone: Whether there is one searcher.
    """
    if allowed is None:
        return _by_codes(ask, queries_QD, k, np.array([nprobe]), n, None, alone=alone)
    reaches: list[Reach] = ask("reach", allowed)
    cells_G = sum((reach.cells_G for reach in reaches), np.zeros(len(allowed.groups), np.int64))
    n_cells, n_lists = sum(reach.n_cells for reach in reaches), max(reach.n_lists for reach in reaches)
    nprobe_G = np.ceil(nprobe * n_cells / np.maximum(cells_G, 1)).astype(np.int64)
    scanned_G = n_cells * np.minimum(1, nprobe_G / n_lists)
    is_few_Q = (cells_G <= np.maximum(EXACT_ROWS, scanned_G / _CODES_PER_VECTOR))[allowed.group_Q]
    ids_QK, scores_QK = no_neighbors(len(queries_QD), k)
    few, many = np.flatnonzero(is_few_Q), np.flatnonzero(~is_few_Q)
    if len(few):
        ids_QK[few], scores_QK[few] = merge(ask("among", queries_QD[few], k, allowed.of(few)), k)
    if len(many):
        found = _by_codes(ask, queries_QD[many], k, nprobe_G, n, allowed.of(many), alone=alone)
        ids_QK[many], scores_QK[many] = found
    return ids_QK, scores_QK


def _by_codes(
    ask: Ask,
    queries_QD: Float32Matrix,
    k: int,
    nprobe_G: Int64Array,
    n: int,
    allowed: NeighborFilter | None,
    *,
    alone: bool,
) -> Neighbors:
    found: list[Candidates] = ask("candidates", queries_QD, nprobe_G, n, allowed, not alone)
    own = [found[0].places_QR] if alone else _kept(found, n)
    ranked: list[Neighbors] = ask("ranked", queries_QD, k, own=own)
    return ranked[0] if alone else merge(ranked, k)


def _kept(found: Sequence[Candidates], n: int) -> list[Int64Array]:
    """Places of those candidates of each searcher that are among the n best of all, by score and id; -1 for others."""
    named = [(each.ids_QR, each.scores_QR) for each in found if each.ids_QR is not None]
    assert len(named) == len(found), "candidates of several searchers are compared by id"
    ids_Qn, scores_Qn = best(named, n, lambda ids: ids)
    last_id_Q1, last_score_Q1 = ids_Qn[:, -1:], scores_Qn[:, -1:]
    is_all_Q1 = last_id_Q1 == NONE
    return [
        np.where(
            is_all_Q1 | (scores_QR > last_score_Q1) | ((scores_QR == last_score_Q1) & (ids_QR <= last_id_Q1)),
            each.places_QR,
            NONE,
        )
        for each, (ids_QR, scores_QR) in zip(found, named, strict=True)
    ]
