"""Choice of the faiss index: factory string, memory, and size of the training sample.

Scores are always cosine similarities. The exact index (`Flat`) uses the inner product. All others compare codes by L2,
which gives unit vectors the same order, and re-rank the candidates with vectors in half precision; so there is no
option for the metric. L2 suits the codes: scGPT embeddings lie close to their common mean (of norm 0.998 for an
untrained network), which dominates inner products and cancels out of L2 distances.

Measured on one core with 400,000 vectors synthesised (`benchmark/synthetic_embeddings.py`) from the embeddings of
12,261 blood cells by the network `demo` (width 128); 2,048 lists, nprobe 32. Columns 10, 40, 160: recall@10 after
re-ranking so many candidates. Bytes are those of code + id. Times for training, adding and search are rough:

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

The default is a PCA followed by fast-scan PQ of residuals (`fsr`: the difference between a vector and the centroid of
its list). It trains three times as fast as plain PQ (which spends most of its time on polysemous training; `PQ16np`
skips it), and re-ranking corrects the order of close candidates. Without residuals (`fs`), the same recall takes
sixteen times as many candidates, and more as lists grow denser.
"""

import math
import re

import faiss

from scgpt_ray.errors import ConfigError

EXACT_UP_TO = 200_000
"""Largest number of cells that is searched exactly: it takes a millisecond per query."""
MIN_ROWS_PER_LIST = 39
"""Training rows per list below which faiss warns: centroids become unstable."""

EXACT = "Flat"
"""Factory string of the exact index."""

_ID_BYTES = 8
_CODEBOOK_ROWS = 10_000
_CPP_LOCATION = re.compile(r"^Error in .* at \S+\.(cpp|h):\d+: (Error: )?")
_WIDTHS = (96, 80, 64, 32)  # principal components, 4 bits per pair; most accurate first
_DEFAULT_WIDTH = 1  # position in _WIDTHS: 28 bytes per cell with its id, plus padding of lists to blocks of 32
_ACCURATE_ABOVE = 0.985  # target recall above which the default code would need many candidates
_BLOCK = 32  # vectors per block of fast scan; lists are padded to whole blocks
_GRAPH_FROM = 4096  # lists; HNSW finds the nearest of 8,192 centroids in 15 us, comparing with all takes 71 us
_GRAPH_LINKS = 32  # HNSW finds the nearest of 8,192 centroids for 99.94 % of vectors; 16 links: 99.62 %, 10 us
_SMALL_SHARD, _SMALL_SHARDS, _LARGE_SHARD = 2_000_000, 4, 10_000_000


def default_shards(n: int) -> int:
    """Default number of shards: one per 2,000,000 vectors up to four shards, then one per 10,000,000.

    Shards are built in parallel, but each has a copy of the centroids and takes time to open.
    """
    return max(1, min(_SMALL_SHARDS, -(-n // _SMALL_SHARD)), -(-n // _LARGE_SHARD))


def choose_factory(
    n: int, d: int, memory_budget: int | None = None, n_shards: int = 1, target_recall: float = 0.95
) -> str:
    """Factory string for n vectors of width d: exact for few, else the most accurate code that fits the budget.

    Above a target recall of 0.985 a more accurate, larger code is tried first.

    Args:
        n: Number of vectors in the whole index.
        d: Width.
        memory_budget: Bytes that the opened index may take, all shards together; None for no limit.
        n_shards: Number of shards.
        target_recall: Target recall@10 after re-ranking.

    Raises:
        ConfigError: If no candidate fits.
    """
    candidates = _candidates(n, d, target_recall)
    sizes = [index_bytes(factory, n, d, n_shards) for factory in candidates]
    for factory, size in zip(candidates, sizes, strict=True):
        if memory_budget is None or size <= memory_budget:
            return factory
    raise ConfigError(
        f"--memory-budget of {memory_budget:,} bytes is too small for {n:,} vectors of width {d}",
        expected=f"at least {min(sizes):,} bytes",
        remedy="raise the budget, use fewer shards, or name a smaller index with --factory",
    )


def _candidates(n: int, d: int, target_recall: float) -> list[str]:
    nlist = _nlist(-(-n // default_shards(n)))
    lists = f"IVF{nlist}" + (f"_HNSW{_GRAPH_LINKS}" if nlist >= _GRAPH_FROM else "")
    tried = _WIDTHS if target_recall > _ACCURATE_ABOVE else _WIDTHS[_DEFAULT_WIDTH:]
    widths = dict.fromkeys(min(width, max(2, d - d % 2)) for width in tried)
    inverted = [f"PCAR{width},{lists},PQ{width // 2}x4fsr" for width in widths]
    return [EXACT, *inverted] if n <= EXACT_UP_TO else inverted


def _nlist(n: int) -> int:
    """Number of lists for n rows: a power of two near 4 sqrt(n), small enough to be trained on n rows.

    It follows the rows of a shard of the default size, because the work of training grows with the square of the lists.
    """
    trainable = max(1, n // MIN_ROWS_PER_LIST)
    return int(min(2 ** round(math.log2(4 * math.sqrt(max(n, 1)))), 2 ** math.floor(math.log2(trainable))))


def with_lists(factory: str, n: int) -> str:
    """The factory string with its number of lists lowered, if n vectors cannot train them, to a power of two."""
    most = 2 ** math.floor(math.log2(max(1, n // MIN_ROWS_PER_LIST)))
    return re.sub(r"(?<=IVF)\d+", lambda lists: str(min(int(lists[0]), most)), factory)


def index_bytes(factory: str, n: int, d: int, n_shards: int = 1) -> int:
    """Bytes of an opened index: codes and ids, the centroids with their graph, and the padding of blocks.

    Centroids and padding count once where lists are merged when they are opened (`merged_lists`), else for each shard.
    """
    per_vector = bytes_per_vector(factory, d)
    index = empty_index(factory, d)  # keeps the memory of `lists` alive
    lists = inverted_lists(index)
    if lists is None:
        return n * per_vector
    per_list = 4 * lists.d + (2 * 4 * _GRAPH_LINKS if "_HNSW" in factory else 0)
    if "fs" in factory:
        per_list += _BLOCK // 2 * (per_vector - _ID_BYTES)
    copies = 1 if isinstance(lists, faiss.IndexIVFPQFastScan) else n_shards
    return n * per_vector + copies * int(lists.nlist) * per_list


def bytes_per_vector(factory: str, d: int) -> int:
    """Bytes of one vector in an index: its code, plus 8 bytes of id if the index has inverted lists.

    Raises:
        ConfigError: If faiss refuses the factory string.
    """
    index = empty_index(factory, d)
    lists = inverted_lists(index)
    # sa_code_size would also count the number of the list, which is not stored inside the index.
    code_bytes = index.sa_code_size() if lists is None else lists.code_size
    return int(code_bytes) + (0 if lists is None else _ID_BYTES)


def training_size(factory: str, n: int, d: int, memory_budget: int | None = None) -> int:
    """Number of rows to sample for training.

    256 rows per list up to 500,000 rows in all, but at least 64 per list and 10,000 for the codebook; at most n; 0 for
    an index that needs no training. A memory budget can lower it to 39 rows per list, but not below the 10,000 rows.
    (With 8,192 lists and 5,000,000 vectors, 64 rows per list gave the same recall as 122 in half the time.)

    Args:
        factory: A faiss factory string.
        n: Number of vectors.
        d: Width.
        memory_budget: Bytes that the sample may take as float32; None for no limit.

    Raises:
        ConfigError: If faiss refuses the factory string.
    """
    index = empty_index(factory, d)
    if index.is_trained:
        return 0
    nlist = n_lists(index)
    rows = max(64 * nlist, min(256 * nlist, 500_000), _CODEBOOK_ROWS)
    if memory_budget is not None:
        rows = max(min(rows, memory_budget // (4 * d)), MIN_ROWS_PER_LIST * nlist, min(rows, _CODEBOOK_ROWS))
    return min(n, rows)


def empty_index(factory: str, d: int) -> faiss.Index:
    """An untrained index whose ids are row numbers in the order of adding.

    Raises:
        ConfigError: If faiss refuses the factory string; quotes the reason that faiss gives.
    """
    try:
        index = faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT if factory == EXACT else faiss.METRIC_L2)
    except RuntimeError as error:
        raise _refused(factory, d, reason(error)) from None
    if n_lists(index) == 0:
        raise _refused(factory, d, "no inverted lists")
    if isinstance(behind_transforms(index), faiss.IndexIDMap):
        raise _refused(factory, d, "an IDMap replaces the row numbers that serve as ids")
    return index


def _refused(factory: str, d: int, why: str) -> ConfigError:
    return ConfigError(
        f"--factory {factory or repr(factory)}: {why}",
        expected=f"a faiss factory string for width {d}, such as IVF1024,SQ8",
        remedy="use auto, or see the index factory page of the faiss wiki",
    )


def behind_transforms(index: faiss.Index) -> faiss.Index:
    """The index behind any vector transforms (PCA, rotations)."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def inverted_lists(index: faiss.Index) -> faiss.IndexIVF | None:
    """The IVF part of an index; None if it has no inverted lists."""
    try:
        lists = faiss.downcast_index(faiss.extract_index_ivf(index))
    except RuntimeError:  # faiss has no other way to query this
        return None
    assert isinstance(lists, faiss.IndexIVF)
    return lists


def n_lists(index: faiss.Index) -> int:
    """Number of inverted lists, which is the largest useful nprobe; 1 if there are none."""
    lists = inverted_lists(index)
    return 1 if lists is None else int(lists.nlist)


def reason(error: RuntimeError) -> str:
    """The message of a faiss error without its C++ source location."""
    return _CPP_LOCATION.sub("", str(error).split("\n")[0]).strip()
