"""How much of the truth an approximate search finds, and how far it must look for that."""

from collections.abc import Callable

from scgpt_ray.index.search import NONE
from scgpt_ray.schema import Int64Array

PLATEAU = 0.002
"""Recall that two doublings of nprobe must gain together for a third one to be worth its time."""


def recall_at(found_ids_QK: Int64Array, true_ids_QK: Int64Array) -> float:
    """Recall@K: the part of the true neighbours that were found, over all queries.

    Args:
        found_ids_QK: int64 [Q, K] of the search that is judged; -1 is none.
        true_ids_QK: int64 [Q, K] of the exact search; -1 is none and does not count.
    """
    assert len(found_ids_QK) == len(true_ids_QK), (found_ids_QK.shape, true_ids_QK.shape)
    exists_QK = true_ids_QK != NONE
    assert exists_QK.any(), "recall needs a query with a neighbour"
    found_QK = (true_ids_QK[:, :, None] == found_ids_QK[:, None, :]).any(axis=2)
    return float(found_QK[exists_QK].mean())


def choose_nprobe(
    search_with: Callable[[int], Int64Array], true_ids_QK: Int64Array, nlist: int, target: float
) -> tuple[int, float]:
    """Double nprobe from 1 until the recall reaches a target, or stops growing.

    What the codec loses no nprobe brings back. Where the recall stops growing below the target, the smallest
    nprobe on that plateau is taken, not a search of everything.

    Args:
        search_with: nprobe -> ids found, int64 [Q, K].
        true_ids_QK: What the exact search found.
        nlist: The largest nprobe; 1 for an index without lists.
        target: Recall wanted, 0 to 1.

    Returns:
        nprobe and the recall measured with it, which is below the target where that is out of reach.
    """
    measured: list[tuple[int, float]] = []
    nprobe = 1
    while True:
        measured.append((nprobe, recall_at(search_with(nprobe), true_ids_QK)))
        if measured[-1][1] >= target:
            return measured[-1]
        if nprobe == nlist or _is_flat(measured):
            best = max(recall for _, recall in measured)
            return next(entry for entry in measured if entry[1] >= best - PLATEAU)
        nprobe = min(2 * nprobe, nlist)


def _is_flat(measured: list[tuple[int, float]]) -> bool:
    doublings = 2
    return len(measured) > doublings and measured[-1][1] - measured[-1 - doublings][1] < PLATEAU
