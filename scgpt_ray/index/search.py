"""Nearest neighbours: in one shard, over many, and exactly.

Neighbours come in falling order of their score; equal scores are ordered by id, also across the last place
kept, so that a result does not depend on how the vectors are cut into shards. RaBitQ of several bits is the
one exception: faiss skips what is improbable beside the neighbours found so far, and shards skip a bit less.

Nor does a result depend on the other queries, or on the number of threads. A matrix product would show both: the
kernels that faiss's OpenBLAS has for AVX2 (`Haswell`, `Zen`) round an entry by its place in the product. So exact
search takes from a product only which vectors are near, and computes their scores one by one.

Shapes: Q queries, K neighbours, D width, N vectors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias, TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from scgpt_ray.errors import ConfigError
from scgpt_ray.index.factory import behind_transforms, inverted_lists, reason
from scgpt_ray.schema import Float32Matrix, Int64Array

NONE = -1
"""The id where there are fewer than K neighbours; its score is -inf."""

Neighbors: TypeAlias = tuple[Int64Array, Float32Matrix]
"""ids int64 [Q, K] and scores float32 [Q, K], the cosines."""

Mask: TypeAlias = npt.NDArray[np.bool_]
"""One bit for each row of a shard."""

_faiss: Any = faiss  # the stubs know nothing of search parameters
_Find: TypeAlias = Callable[[Float32Matrix, int], Neighbors]
_Vectors: TypeAlias = Callable[[Int64Array], Float32Matrix]
_T = TypeVar("_T")

_TIED_CELLS = 2**24  # ids held at once while ties are settled: 200 MB
_BLOCK_FLOATS = 2**22  # vectors held as float32 at once by a thread: 16 MB
_SPARE = 6  # neighbours looked at beyond those wanted, so that ties seldom reach behind them
_ROUNDING = np.float32(4e-6)  # twice what the ways to sum the score of one pair differ by (1.5e-6 at d 512)


def set_threads(n: int) -> None:
    """Let faiss use n threads in this process; its default is every core, whatever Ray granted."""
    faiss.omp_set_num_threads(n)


@contextmanager
def one_thread() -> Iterator[int]:
    """Let faiss and its BLAS use one thread meanwhile, so that no rounding depends on how many there are.

    Yields:
        How many they were granted.
    """
    granted = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield granted
    finally:
        faiss.omp_set_num_threads(granted)


def in_threads(do: Callable[[int], _T], starts: Iterable[int], threads: int) -> list[_T]:
    """What a function gives for each start, in their order; each runs in one thread, its calls of faiss too."""
    # A Python thread has its own number of OpenMP threads, which OpenBLAS goes by.
    with ThreadPoolExecutor(threads, initializer=set_threads, initargs=(1,)) as pool:
        return list(pool.map(do, starts))


def search(
    index: faiss.Index, queries_QD: Float32Matrix, k: int, nprobe: int, allowed_N: Mask | None = None
) -> Neighbors:
    """The k nearest neighbours that an index finds.

    Args:
        index: An opened shard.
        queries_QD: float32 [Q, d], L2-normalised.
        k: Neighbours wanted.
        nprobe: Inverted lists to look into; more than there are means all. Not read where there are none.
        allowed_N: bool [ntotal], rows that may be found; None for all.

    Returns:
        rows int64 [Q, k], -1 where there are no more; scores float32 [Q, k], -inf there.
    """
    find = _find_in(index, nprobe, allowed_N)
    return merge([_nearest(find, np.ascontiguousarray(queries_QD, np.float32), k, k + _SPARE, index.ntotal)], k)


def candidates(
    index: faiss.Index, queries_QD: Float32Matrix, n: int, nprobe: int, allowed_N: Mask | None = None
) -> Int64Array:
    """Rows of the n nearest by their codes, int64 [Q, n], -1 where there are no more; for a second ranking.

    As `search`, without settling ties in the last place: codes of few bits tie all the time.
    """
    if index.ntotal == 0 or len(queries_QD) == 0:
        return no_neighbors(len(queries_QD), n)[0]
    return _find_in(index, nprobe, allowed_N)(np.ascontiguousarray(queries_QD, np.float32), min(n, index.ntotal))[0]


def _find_in(index: faiss.Index, nprobe: int, allowed_N: Mask | None) -> _Find:
    """Search an index by faiss; scores are cosines, exact or estimated by codes."""
    inner, lists = behind_transforms(index), inverted_lists(index)
    # The selector is kept alive by this closure: faiss holds no reference to it.
    selector = None if allowed_N is None else _faiss.IDSelectorBitmap(np.packbits(allowed_N, bitorder="little"))
    if lists is None:
        parameters = _faiss.SearchParameters(sel=selector)
    else:
        parameters = _faiss.SearchParametersIVF(sel=selector, nprobe=min(nprobe, lists.nlist))

    def find(queries_QD: Float32Matrix, width: int) -> Neighbors:
        assert queries_QD.shape[1] == index.d, (queries_QD.shape, index.d)
        try:
            with nullcontext() if lists is None else _one_by_one():
                found_QW, rows_QW = inner.search(_transformed(index, queries_QD), width, params=parameters)
        except RuntimeError as error:
            raise ConfigError(
                f"this index cannot be searched so: {reason(error)}",
                expected="a kind of index that searches among allowed cells, such as Flat or IVF",
                remedy="build the index with --factory auto, or leave the filter out",
            ) from None
        if isinstance(index, faiss.IndexFlat):
            return rows_QW, scores_of(queries_QD, rows_QW, index.reconstruct_batch)
        is_cosine = index.metric_type == faiss.METRIC_INNER_PRODUCT
        return rows_QW, found_QW if is_cosine else 1 - found_QW / np.float32(2)

    return find


def _transformed(index: faiss.Index, queries_QD: Float32Matrix) -> Float32Matrix:
    """Queries as the index behind rotations and the like sees them, whatever other queries there are."""
    while isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # a C++ vector, whatever the stub says
        for step in map(_faiss.downcast_VectorTransform, map(chain.at, range(chain.size()))):
            if isinstance(step, faiss.LinearTransform):
                matrix_ED = faiss.vector_to_array(step.A).reshape(step.d_out, step.d_in)
                # einsum, not a matrix product: its sums do not depend on the number of rows.
                queries_QD = np.einsum("qd,ed->qe", queries_QD, matrix_ED)
                queries_QD += faiss.vector_to_array(step.b) if step.have_bias else 0
            else:
                queries_QD = step.apply(queries_QD)
        index = faiss.downcast_index(index.index)
    return queries_QD


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Let faiss compare each query with the centroids without a matrix product."""
    limit = _faiss.cvar.distance_compute_blas_threshold  # floats of all queries from which it takes one
    _faiss.cvar.distance_compute_blas_threshold = 2**31 - 1
    try:
        yield
    finally:
        _faiss.cvar.distance_compute_blas_threshold = limit


def exact_search(blocks: Iterable[tuple[Int64Array, Float32Matrix]], queries_QD: Float32Matrix, k: int) -> Neighbors:
    """The k nearest neighbours, by comparing every query with every vector.

    Args:
        blocks: Pairs of ids int64 [n] and vectors float32 [n, d], read once, one at a time.
        queries_QD: float32 [Q, d].
        k: Neighbours wanted.

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
    """Cosines of queries and some rows each, every one by itself; by threads, in blocks of queries.

    Args:
        queries_QD: float32 [Q, d].
        rows_QR: int64 [Q, R]; -1 is none and scores -inf.
        vectors_of: Rows int64 [some] to their vectors, float32 [some, d].

    Returns:
        float32 [Q, R].
    """
    scores_QR = np.full(rows_QR.shape, -np.inf, np.float32)
    step = max(1, _BLOCK_FLOATS // max(1, rows_QR.shape[1] * queries_QD.shape[1]))

    def score(start: int) -> None:
        block = slice(start, start + step)
        rows_qR = rows_QR[block]
        near_qRD = vectors_of(np.maximum(rows_qR, 0).ravel()).reshape(*rows_qR.shape, -1)
        # einsum, not a matrix product: its sums do not depend on the number of rows.
        scores_qR = np.einsum("qd,qrd->qr", queries_QD[block], near_qRD)
        scores_QR[block] = np.where(rows_qR == NONE, np.float32(-np.inf), scores_qR)

    in_threads(score, range(0, len(rows_QR), step), faiss.omp_get_max_threads())
    return scores_QR


def merge(results: Sequence[Neighbors], k: int) -> Neighbors:
    """The k best of the neighbours that several shards found for the same queries.

    Args:
        results: Pairs of ids [Q, any] and scores [Q, any]; an id of -1 is no neighbour, whatever its score.
        k: Neighbours wanted.
    """
    ids_QM = np.concatenate([ids for ids, _ in results], axis=1)
    scores_QM = np.concatenate([scores for _, scores in results], axis=1)
    ids_QM, scores_QM = _ordered(ids_QM, np.where(ids_QM == NONE, np.float32(-np.inf), scores_QM))
    missing = max(0, k - ids_QM.shape[1])
    if missing:
        absent_ids, absent_scores = no_neighbors(len(ids_QM), missing)
        return np.hstack([ids_QM, absent_ids]), np.hstack([scores_QM, absent_scores])
    return np.ascontiguousarray(ids_QM[:, :k]), np.ascontiguousarray(scores_QM[:, :k])


def _nearest(find: _Find, queries_QD: Float32Matrix, k: int, width: int, n: int) -> Neighbors:
    """The k best by score and id of what `find` offers among n vectors.

    Where the last of those asked for is not clearly worse than the k-th, it is chance which of the equals faiss
    kept, and those queries are asked again for more until their ties are complete.
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
        _, rows_QW = faiss.knn(queries_QD, vectors_ND, width, metric=faiss.METRIC_INNER_PRODUCT)
        return ids_N[rows_QW], scores_of(queries_QD, rows_QW, vectors_ND.__getitem__)

    return find


def no_neighbors(n_queries: int, k: int) -> Neighbors:
    """The answer where there is no neighbour."""
    return np.full((n_queries, k), NONE, np.int64), np.full((n_queries, k), -np.inf, np.float32)
