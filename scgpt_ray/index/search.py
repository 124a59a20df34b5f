"""Nearest-neighbour search: in one shard, merged over shards, and exact.

Neighbours are sorted by falling score, ties by id. This also decides which of several tied neighbours is the k-th, so
results do not depend on how vectors are divided into shards. The one exception is RaBitQ with several bits: faiss skips
candidates that are unlikely given the neighbours found so far, and fewer of them in a smaller shard.

Results do not depend on the other queries or on the number of threads either. Scores from a matrix product would: the
AVX2 kernels of faiss's OpenBLAS (`Haswell`, `Zen`) round an entry by its position in the product. So exact search uses
a matrix product only to select candidates, and computes each score separately.

Shapes: Q queries, K neighbours, D width, N vectors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from scgpt_ray.index.assigned import are_many, assign, compared, find_assigned
from scgpt_ray.schema import Float32Matrix, Int64Array

NONE = -1
"""The id that fills up rows with fewer than K neighbours; its score is -inf."""

Neighbors: TypeAlias = tuple[Int64Array, Float32Matrix]
"""ids int64 [Q, K] and scores float32 [Q, K], which are cosine similarities."""

Mask: TypeAlias = npt.NDArray[np.bool_]
"""bool [n], one value per row of a shard."""

IdsOf: TypeAlias = Callable[[Int64Array], Int64Array]
"""Function from places of cells, of any shape, to their ids; -1 to -1."""

_Find: TypeAlias = Callable[[Float32Matrix, int], Neighbors]
_Vectors: TypeAlias = Callable[[Int64Array], Float32Matrix]
_T = TypeVar("_T")

_TIED_CELLS = 2**24  # ids in memory while ties are resolved: 200 MB
_BLOCK_FLOATS = 2**22  # float32 values in memory per thread: 16 MB
_SPARE = 6  # extra neighbours requested, so that most ties are resolved by the first search
_SORTED = 16  # extra candidates sorted, so that most ties are resolved at once
_ROUNDING = np.float32(4e-6)  # over twice the difference between ways to sum one score (1.5e-6 at d 512)


def set_threads(n: int) -> None:
    """Set the number of threads of faiss in this process; its default is all cores, whatever Ray granted."""
    faiss.omp_set_num_threads(n)


@contextmanager
def one_thread() -> Iterator[int]:
    """Run faiss and its BLAS in one thread, so that rounding does not depend on the number of threads.

    Yields:
        The number of threads before.
    """
    granted = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield granted
    finally:
        faiss.omp_set_num_threads(granted)


def in_threads(do: Callable[[int], _T], starts: Iterable[int], threads: int) -> list[_T]:
    """Map a function over `starts` with a thread pool; within each call faiss runs in one thread. Keeps the order."""
    # OpenMP keeps the number of threads per Python thread, and OpenBLAS follows it.
    with ThreadPoolExecutor(threads, initializer=set_threads, initargs=(1,)) as pool:
        return list(pool.map(do, starts))


def search(
    index: faiss.Index, queries_QD: Float32Matrix, k: int, nprobe: int, allowed_N: Mask | None = None
) -> Neighbors:
    """Search an index for the k nearest neighbours.

    Args:
        index: An opened shard.
        queries_QD: float32 [Q, d], L2-normalised.
        k: Number of neighbours.
        nprobe: Inverted lists to search, at most all; ignored without inverted lists.
        allowed_N: bool [ntotal], rows that may be found; None for all.

    Returns:
        rows int64 [Q, k] and scores float32 [Q, k], filled up with -1 and -inf.
    """
    find = _find_in(index, nprobe, allowed_N)
    return merge([_nearest(find, np.ascontiguousarray(queries_QD, np.float32), k, k + _SPARE, index.ntotal)], k)


def candidates(
    index: faiss.Index, queries_QD: Float32Matrix, n: int, nprobe: int, allowed_N: Mask | None = None
) -> Int64Array:
    """Rows of the n nearest codes, int64 [Q, n], filled up with -1; they are to be re-ranked.

    As `search`, but ties in the last place are not resolved: short codes tie all the time.
    """
    if index.ntotal == 0 or len(queries_QD) == 0:
        return no_neighbors(len(queries_QD), n)[0]
    return _find_in(index, nprobe, allowed_N)(np.ascontiguousarray(queries_QD, np.float32), min(n, index.ntotal))[0]


def _find_in(index: faiss.Index, nprobe: int, allowed_N: Mask | None) -> _Find:
    """A function that searches an index with faiss; scores are cosines, exact or estimated from codes."""
    allowed = None if allowed_N is None else np.packbits(allowed_N, bitorder="little")

    def find(queries_QD: Float32Matrix, width: int) -> Neighbors:
        assert queries_QD.shape[1] == index.d, (queries_QD.shape, index.d)
        rows_QW, scores_QW = find_assigned(index, assign(index, queries_QD, nprobe), width, allowed)
        if isinstance(index, faiss.IndexFlat):
            return rows_QW, scores_of(queries_QD, rows_QW, index.reconstruct_batch)
        return rows_QW, scores_QW

    return find


def exact_search(blocks: Iterable[tuple[Int64Array, Float32Matrix]], queries_QD: Float32Matrix, k: int) -> Neighbors:
    """The k nearest neighbours by exact search: every query is compared with every vector.

    Args:
        blocks: Pairs of ids int64 [n] and vectors float32 [n, d], read once, one at a time.
        queries_QD: float32 [Q, d].
        k: Number of neighbours.

    Returns:
        As `search`.
    """
    queries_QD = np.ascontiguousarray(queries_QD, np.float32)
    best = no_neighbors(len(queries_QD), k)
    for ids_N, vectors_ND in blocks:
        find = _find_among(ids_N, np.ascontiguousarray(vectors_ND, np.float32))
        best = merge([best, _nearest(find, queries_QD, k, k + _SPARE, len(ids_N))], k)
    return best


def scores_of(queries_QD: Float32Matrix, rows_QR: Int64Array, vectors_of: _Vectors) -> Float32Matrix:
    """Cosines between each query and its own rows, computed pair by pair; queries are divided among threads.

    Args:
        queries_QD: float32 [Q, d].
        rows_QR: int64 [Q, R]; -1 for none, whose score is -inf.
        vectors_of: Function from rows, int64 [some], to their vectors, float32 [some, d].

    Returns:
        float32 [Q, R].
    """
    scores_QR = np.full(rows_QR.shape, -np.inf, np.float32)
    step = max(1, _BLOCK_FLOATS // max(1, rows_QR.shape[1] * queries_QD.shape[1]))

    def score(start: int) -> None:
        block = slice(start, start + step)
        rows_qR = rows_QR[block]
        near_qRD = vectors_of(np.maximum(rows_qR, 0).ravel()).reshape(*rows_qR.shape, -1)
        # The sums of einsum, unlike those of a matrix product, do not depend on the number of rows.
        scores_qR = np.einsum("qd,qrd->qr", queries_QD[block], near_qRD)
        scores_QR[block] = np.where(rows_qR == NONE, np.float32(-np.inf), scores_qR)

    in_threads(score, range(0, len(rows_QR), step), faiss.omp_get_max_threads())
    return scores_QR


def merge(results: Sequence[Neighbors], k: int) -> Neighbors:
    """Merge the neighbours that several shards found for the same queries, and keep the k best.

    Args:
        results: Pairs of ids [Q, any] and scores [Q, any]; an id of -1 is ignored, whatever its score.
        k: Number of neighbours.
    """
    ids_QM = np.concatenate([ids for ids, _ in results], axis=1)
    scores_QM = np.concatenate([scores for _, scores in results], axis=1)
    ids_QM, scores_QM = _ordered(ids_QM, np.where(ids_QM == NONE, np.float32(-np.inf), scores_QM))
    missing = max(0, k - ids_QM.shape[1])
    if missing:
        absent_ids, absent_scores = no_neighbors(len(ids_QM), missing)
        return np.hstack([ids_QM, absent_ids]), np.hstack([scores_QM, absent_scores])
    return np.ascontiguousarray(ids_QM[:, :k]), np.ascontiguousarray(scores_QM[:, :k])


def best(results: Sequence[Neighbors], k: int, ids_of: IdsOf) -> Neighbors:
    """`merge` of results that name cells by something else than their ids: only the best are sorted.

    Args:
        results: Pairs of places [Q, any] and scores [Q, any]; a place of -1 is ignored, whatever its score.
        k: Number of neighbours.
        ids_of: Ids of places, or other numbers in their order.

    Returns:
        places int64 [Q, k] and scores float32 [Q, k], by falling score and id, filled up with -1 and -inf.
    """
    places_QM = np.concatenate([places for places, _ in results], axis=1)
    scores_QM = np.concatenate([scores for _, scores in results], axis=1)
    scores_QM[places_QM == NONE] = -np.inf
    n = k + _SORTED
    if places_QM.shape[1] <= n:
        return _first(places_QM, scores_QM, k, ids_of)
    best_Qn = np.argpartition(-scores_QM, n - 1, axis=1)[:, :n]
    kept_Qn = np.take_along_axis(scores_QM, best_Qn, axis=1)
    places_QK, scores_QK = _first(np.take_along_axis(places_QM, best_Qn, axis=1), kept_Qn, k, ids_of)
    tied = np.flatnonzero((scores_QK[:, -1] == kept_Qn.min(axis=1)) & (places_QK[:, -1] != NONE))
    places_QK[tied], scores_QK[tied] = _first(places_QM[tied], scores_QM[tied], k, ids_of)
    return places_QK, scores_QK


def _first(places_QM: Int64Array, scores_QM: Float32Matrix, k: int, ids_of: IdsOf) -> Neighbors:
    """The first k by score and id."""
    order_QK = np.lexsort((ids_of(places_QM), -scores_QM), axis=1)[:, :k]
    places_QK, scores_QK = (np.take_along_axis(values, order_QK, axis=1) for values in (places_QM, scores_QM))
    absent_places, absent_scores = no_neighbors(len(order_QK), k - order_QK.shape[1])
    return np.hstack([places_QK, absent_places]), np.hstack([scores_QK, absent_scores])


def _nearest(find: _Find, queries_QD: Float32Matrix, k: int, width: int, n: int) -> Neighbors:
    """The k best by score and id of the neighbours that `find` returns, among n vectors.

    If the last of `width` neighbours scores no worse than the k-th, faiss may have dropped a tied one with a smaller
    id: such queries are searched again, each time for four times as many, until all ties are included.
    """
    if n == 0 or len(queries_QD) == 0:
        return no_neighbors(len(queries_QD), k)
    ids_QW, scores_QW = _ordered(*find(queries_QD, min(width, n)))
    if width < n:
        cut = np.flatnonzero((scores_QW[:, k - 1] <= scores_QW[:, -1] + _ROUNDING) & (ids_QW[:, -1] != NONE))
        ids_QW, scores_QW = ids_QW[:, :k], scores_QW[:, :k]
        wider = 4 * width
        for start in range(0, len(cut), rows := max(1, _TIED_CELLS // wider)):
            tied = cut[start : start + rows]
            ids_QW[tied], scores_QW[tied] = _nearest(find, queries_QD[tied], k, wider, n)
    return ids_QW[:, :k], scores_QW[:, :k]


def _ordered(ids_QM: Int64Array, scores_QM: Float32Matrix) -> Neighbors:
    order_QM = np.lexsort((ids_QM, -scores_QM), axis=1)
    return np.take_along_axis(ids_QM, order_QM, axis=1), np.take_along_axis(scores_QM, order_QM, axis=1)


def _find_among(ids_N: Int64Array, vectors_ND: Float32Matrix) -> _Find:
    def find(queries_QD: Float32Matrix, width: int) -> Neighbors:
        with compared(by_product=are_many(queries_QD)):
            _, rows_QW = faiss.knn(queries_QD, vectors_ND, width, metric=faiss.METRIC_INNER_PRODUCT)
        return ids_N[rows_QW], scores_of(queries_QD, rows_QW, vectors_ND.__getitem__)

    return find


def no_neighbors(n_queries: int, k: int) -> Neighbors:
    """A result without any neighbour: ids -1 [Q, k], scores -inf [Q, k]."""
    return np.full((n_queries, k), NONE, np.int64), np.full((n_queries, k), -np.inf, np.float32)
