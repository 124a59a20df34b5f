"""Nearest neighbours: in one shard, over many, and exactly.

Neighbours come in falling order of their score; equal scores are ordered by id, also across the last place
kept, so that a result does not depend on how the vectors are cut into shards. RaBitQ of several bits is the
one exception: faiss skips what is improbable beside the neighbours found so far, and shards skip a bit less.

Shapes: Q queries, K neighbours, D width, N vectors.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from scgpt_ray.errors import ConfigError
from scgpt_ray.index.factory import inverted_lists, n_lists, reason
from scgpt_ray.schema import Float32Matrix, Int64Array

NONE = -1
"""The id where there are fewer than K neighbours; its score is -inf."""

Neighbors: TypeAlias = tuple[Int64Array, Float32Matrix]
"""ids int64 [Q, K] and scores float32 [Q, K], the cosines."""

Mask: TypeAlias = npt.NDArray[np.bool_]
"""One bit for each row of a shard."""

_faiss: Any = faiss  # the stubs know nothing of search parameters
_Find: TypeAlias = Callable[[Float32Matrix, int], Neighbors]

_TIED_CELLS = 2**24  # ids held at once while ties are settled: 200 MB


def set_threads(n: int) -> None:
    """Let faiss use n threads in this process; its default is every core, whatever Ray granted."""
    faiss.omp_set_num_threads(n)


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
    return merge([_nearest(find, np.ascontiguousarray(queries_QD, np.float32), k, k + 1, index.ntotal)], k)


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
    # The selector is kept alive by this closure: faiss holds no reference to it.
    selector = None if allowed_N is None else _faiss.IDSelectorBitmap(np.packbits(allowed_N, bitorder="little"))
    if inverted_lists(index) is None:
        parameters = _faiss.SearchParameters(sel=selector)
    else:
        parameters = _faiss.SearchParametersIVF(sel=selector, nprobe=min(nprobe, n_lists(index)))
    if isinstance(index, faiss.IndexPreTransform):
        parameters = _faiss.SearchParametersPreTransform(index_params=parameters)

    def find(queries_QD: Float32Matrix, width: int) -> Neighbors:
        assert queries_QD.shape[1] == index.d, (queries_QD.shape, index.d)
        try:
            found_QW, rows_QW = index.search(queries_QD, width, params=parameters)
        except RuntimeError as error:
            raise ConfigError(
                f"this index cannot be searched so: {reason(error)}",
                expected="a kind of index that searches among allowed cells, such as Flat or IVF",
                remedy="build the index with --factory auto, or leave the filter out",
            ) from None
        is_cosine = index.metric_type == faiss.METRIC_INNER_PRODUCT
        return rows_QW, found_QW if is_cosine else 1 - found_QW / np.float32(2)

    return find


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
        best = merge([best, _nearest(find, queries_QD, k, k + 1, len(ids_N))], k)
    return best


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

    One more than k is asked for. Where that one ties with the k-th, it is chance which of the equals faiss
    kept, and those queries are asked again for more until their ties are complete.
    """
    if n == 0 or len(queries_QD) == 0:
        return no_neighbors(len(queries_QD), k)
    ids_QW, scores_QW = _ordered(*find(queries_QD, min(width, n)))
    if width < n:
        cut = np.flatnonzero((scores_QW[:, k - 1] == scores_QW[:, -1]) & (ids_QW[:, -1] != NONE))
        ids_QW, scores_QW = ids_QW[:, :k], scores_QW[:, :k]
        wider = 4 * width
        for start in range(0, len(cut), rows := max(1, _TIED_CELLS // wider)):
            tied = cut[start : start + rows]
            # Scores stay as they were: in a search for fewer queries they are rounded otherwise.
            ids_QW[tied], _ = _nearest(find, queries_QD[tied], k, wider, n)
    return ids_QW[:, :k], scores_QW[:, :k]


def _ordered(ids_QM: Int64Array, scores_QM: Float32Matrix) -> Neighbors:
    order_QM = np.lexsort((ids_QM, -scores_QM), axis=1)
    return np.take_along_axis(ids_QM, order_QM, axis=1), np.take_along_axis(scores_QM, order_QM, axis=1)


def _find_among(ids_N: Int64Array, vectors_ND: Float32Matrix) -> _Find:
    def find(queries_QD: Float32Matrix, width: int) -> Neighbors:
        scores_QW, places_QW = faiss.knn(queries_QD, vectors_ND, width, metric=faiss.METRIC_INNER_PRODUCT)
        return ids_N[places_QW], scores_QW

    return find


def no_neighbors(n_queries: int, k: int) -> Neighbors:
    """The answer where there is no neighbour."""
    return np.full((n_queries, k), NONE, np.int64), np.full((n_queries, k), -np.inf, np.float32)
