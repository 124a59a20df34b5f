"""Which faiss index: the factory string, what it costs, and how many vectors it wants for training.

Scores are always cosines. The exact index compares by inner product. All others compare codes by L2, which orders unit
vectors alike, and their candidates are ranked again by vectors in half precision: a metric would be an option without
an effect on the answer. It has one on the codes: scGPT's vectors crowd around their common mean (an untrained network's
of norm 0.998), L2 does not see that mean, and the inner products of two codes see little else.

Measured on one core with 400,000 vectors grown (`benchmark/growth.py`) from 12,261 blood cells that the network `demo`
embedded (width 128), in 2,048 lists of which 32 are read. Parts of the true ten neighbours among the first 10, 40, 160
candidates, which is the recall@10 after ranking these again; bytes of code and of id; training, adding, search (rough):

    factory, behind IVF2048   bytes   10     40     160    train s  vectors/s  ms/query
    PCAR96, PQ48x4fsr         24 + 8  0.757  0.994  0.999    21      44,000      0.28
    PCAR80, PQ40x4fsr         20 + 8  0.737  0.991  0.999    18      64,000      0.17
    PCAR64, PQ32x4fsr         16 + 8  0.715  0.985  0.999    16      69,000      0.18
    PCAR32, PQ16x4fsr          8 + 8  0.617  0.948  0.997     3     276,000      0.10
    PCAR80, PQ40x4fs          20 + 8  0.391  0.712  0.920    19      68,000      0.06
    PCAR64, PQ16              16 + 8  0.749  0.993  0.999    55      50,000      0.24
    PCAR128, RaBitQfs         24 + 8  0.697  0.980  0.998    40      39,000      0.21
    RR128, RaBitQ             24 + 8  0.691  0.976  0.998    41      29,000      0.26
    SQ8                      128 + 8  0.988  0.999  0.999    37      37,000      0.32

So fast-scan PQ of residuals (`fsr`: of what a vector differs from its list's centroid by) behind a PCA is chosen: it
trains in a third of plain PQ's time (most of that goes to making its codes polysemous, which PQ16np leaves out), and
what its codes confuse the second ranking sorts out. Coding the vectors themselves (`fs`) needs sixteen times as many
candidates for the same recall, and more as lists grow denser.
"""

import math
import re

import faiss

from scgpt_ray.errors import ConfigError

EXACT_UP_TO = 200_000
"""Cells that are searched exhaustively in a millisecond a query: no approximation is worth it."""
MIN_ROWS_PER_LIST = 39
"""Fewer training rows per list give unstable centroids: below this faiss itself warns."""

EXACT = "Flat"
"""The factory string of the exact index."""

_ID_BYTES = 8
_CODEBOOK_ROWS = 10_000
_CPP_PLACE = re.compile(r"^Error in .* at \S+\.(cpp|h):\d+: (Error: )?")
_PLANES = (96, 80, 64, 32)  # principal components kept, half a byte each pair; most faithful first
_USUAL_PLANE = 1  # 28 bytes a cell with its id; lists in blocks of 32 add some
_FAITHFUL_ABOVE = 0.985  # recall wanted from which the usual code makes the second ranking long
_BLOCK = 32  # vectors that fast scan keeps together; a list is filled up to whole blocks
_GRAPH_FROM = 4096  # lists; a graph finds the list of a vector in 15 us, comparing with 8,192 centroids takes 71
_GRAPH_LINKS = 32  # finds the nearest of 8,192 centroids for 99.94 % of vectors; 16 links: 99.62 %, 10 us
_SMALL_SHARD, _SMALL_SHARDS, _LARGE_SHARD = 2_000_000, 4, 10_000_000


def usual_shards(n: int) -> int:
    """How many shards n vectors are cut into: one for two million up to four, then one for ten million.

    Shards are built side by side, but each has its own centroids in memory, and names candidates of its own.
    """
    return max(1, min(_SMALL_SHARDS, -(-n // _SMALL_SHARD)), -(-n // _LARGE_SHARD))


def choose_factory(
    n: int, d: int, memory_budget: int | None = None, n_shards: int = 1, target_recall: float = 0.95
) -> str:
    """The index for n vectors of width d: exact for few; else the most faithful code that is called for and fits.

    Args:
        n: Vectors in the whole index.
        d: Their width.
        memory_budget: Bytes that the opened index may take, all shards together; None for no bound.
        n_shards: Pieces the index is cut into; each has its own copy of the centroids.
        target_recall: Recall@10 wanted after the second ranking.

    Raises:
        ConfigError: If no candidate fits.
    """
    candidates = _candidates(n, d, n_shards, target_recall)
    sizes = [index_bytes(factory, n, d, n_shards) for factory in candidates]
    for factory, size in zip(candidates, sizes, strict=True):
        if memory_budget is None or size <= memory_budget:
            return factory
    raise ConfigError(
        f"--memory-budget of {memory_budget:,} bytes is too small for {n:,} vectors of width {d}",
        expected=f"at least {min(sizes):,} bytes",
        remedy="raise the budget, use fewer shards, or name a smaller index with --factory",
    )


def _candidates(n: int, d: int, n_shards: int, target_recall: float) -> list[str]:
    nlist = _nlist(-(-n // n_shards))
    lists = f"IVF{nlist}" + (f"_HNSW{_GRAPH_LINKS}" if nlist >= _GRAPH_FROM else "")
    planes = _PLANES if target_recall > _FAITHFUL_ABOVE else _PLANES[_USUAL_PLANE:]
    widths = dict.fromkeys(min(plane, max(2, d - d % 2)) for plane in planes)
    inverted = [f"PCAR{width},{lists},PQ{width // 2}x4fsr" for width in widths]
    return [EXACT, *inverted] if n <= EXACT_UP_TO else inverted


def _nlist(n: int) -> int:
    """A power of two near 4 sqrt(n) that n rows can train, for a shard of n rows."""
    trainable = max(1, n // MIN_ROWS_PER_LIST)
    return int(min(2 ** round(math.log2(4 * math.sqrt(max(n, 1)))), 2 ** math.floor(math.log2(trainable))))


def with_lists(factory: str, n: int) -> str:
    """A factory string with no more inverted lists than n vectors can train, a power of two where it has to yield."""
    most = 2 ** math.floor(math.log2(max(1, n // MIN_ROWS_PER_LIST)))
    return re.sub(r"(?<=IVF)\d+", lambda lists: str(min(int(lists[0]), most)), factory)


def index_bytes(factory: str, n: int, d: int, n_shards: int = 1) -> int:
    """Bytes that an opened index takes: codes and ids once, centroids, their graph and half-filled blocks per shard."""
    per_vector = bytes_per_vector(factory, d)
    index = empty_index(factory, d)  # held, for its lists are of its memory
    lists = inverted_lists(index)
    if lists is None:
        return n * per_vector
    per_list = 4 * lists.d + (2 * 4 * _GRAPH_LINKS if "_HNSW" in factory else 0)
    if "fs" in factory:
        per_list += _BLOCK // 2 * (per_vector - _ID_BYTES)
    return n * per_vector + n_shards * int(lists.nlist) * per_list


def bytes_per_vector(factory: str, d: int) -> int:
    """Bytes that one vector takes in an index: its code, and the 8 bytes of its row where lists keep them.

    Raises:
        ConfigError: If faiss refuses the factory string.
    """
    index = empty_index(factory, d)
    lists = inverted_lists(index)
    # The stand-alone code of an index with lists names the list too; inside it the place does.
    code_bytes = index.sa_code_size() if lists is None else lists.code_size
    return int(code_bytes) + (0 if lists is None else _ID_BYTES)


def training_size(factory: str, n: int, d: int, memory_budget: int | None = None) -> int:
    """Rows to sample for training.

    256 per list as far as that is half a million rows, but never fewer than 64 per list or than a codebook of 256
    codes wants; all rows where there are fewer, and none for an index that needs no training. A memory budget bounds
    the sample too, down to the rows that the lists cannot do without. (In 8,192 lists of 5,000,000 vectors, 64 rows a
    list found no less than 122 did, and took half as long.)

    Args:
        factory: A string that `check_factory` accepts.
        n: Vectors there are.
        d: Their width.
        memory_budget: Bytes that the sample may take, as float32; None for no bound.
    """
    index = empty_index(factory, d)
    if index.is_trained:
        return 0
    nlist = n_lists(index)
    wanted = max(64 * nlist, min(256 * nlist, 500_000), _CODEBOOK_ROWS)
    if memory_budget is not None:
        wanted = max(min(wanted, memory_budget // (4 * d)), MIN_ROWS_PER_LIST * nlist, min(wanted, _CODEBOOK_ROWS))
    return min(n, wanted)


def check_factory(factory: str, d: int) -> None:
    """Refuse a factory string that faiss cannot build at width d.

    Raises:
        ConfigError: With the reason faiss gives, in one line.
    """
    empty_index(factory, d)


def metric_of(factory: str) -> int:
    """What faiss compares by: inner product where it is exact, L2 for codes."""
    return int(faiss.METRIC_INNER_PRODUCT if factory == EXACT else faiss.METRIC_L2)


def empty_index(factory: str, d: int) -> faiss.Index:
    """An untrained index whose ids are the numbers of the rows that are added.

    Raises:
        ConfigError: If faiss refuses the factory string.
    """
    try:
        index = faiss.index_factory(d, factory, metric_of(factory))
    except RuntimeError as error:
        raise _refused(factory, d, reason(error)) from None
    if n_lists(index) == 0:
        raise _refused(factory, d, "no inverted lists")
    if isinstance(behind_transforms(index), faiss.IndexIDMap):
        raise _refused(factory, d, "an IDMap names rows of its own")
    return index


def _refused(factory: str, d: int, why: str) -> ConfigError:
    return ConfigError(
        f"--factory {factory or repr(factory)}: {why}",
        expected=f"a faiss factory string for width {d}, such as IVF1024,SQ8",
        remedy="use auto, or see the index factory page of the faiss wiki",
    )


def behind_transforms(index: faiss.Index) -> faiss.Index:
    """The part of an index that keeps the vectors and their ids, behind rotations and the like."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def inverted_lists(index: faiss.Index) -> faiss.IndexIVF | None:
    """The IVF part of an index, or None where every vector is compared."""
    try:
        lists = faiss.downcast_index(faiss.extract_index_ivf(index))
    except RuntimeError:  # faiss offers no other way to ask
        return None
    assert isinstance(lists, faiss.IndexIVF)
    return lists


def n_lists(index: faiss.Index) -> int:
    """Number of inverted lists, the largest nprobe there is; 1 where every vector is compared."""
    lists = inverted_lists(index)
    return 1 if lists is None else int(lists.nlist)


def reason(error: RuntimeError) -> str:
    """What faiss complains about, without the C++ place before it."""
    return _CPP_PLACE.sub("", str(error).split("\n")[0]).strip()
