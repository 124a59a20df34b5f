"""Which faiss index: the factory string, what it costs, and how many vectors it wants for training.

Fidelity of the codecs at d = 512, as recall@10 against exact search on made-up cells with types inside types:

    codec      bytes a vector, with its id   recall@10
    Flat       2,056                         1.00
    SQ8          520                         0.99
    RaBitQ4      284                         0.96
    RaBitQ2      156                         0.90
    RaBitQ        80                         0.80

RaBitQ has no codebook to train and wants a random rotation before it.
"""

import math
import re

import faiss

from scgpt_ray.errors import ConfigError

EXACT_UP_TO = 200_000
"""Cells that are searched exhaustively in a millisecond a query: no approximation is worth it."""
MIN_ROWS_PER_LIST = 39
"""Fewer training rows per list give unstable centroids: below this faiss itself warns."""

_ID_BYTES = 8
_CPP_PLACE = re.compile(r"^Error in .* at \S+\.(cpp|h):\d+: (Error: )?")
_CODECS = ("SQ8", "RaBitQ4", "RaBitQ2", "RaBitQ")  # most faithful first
_FLAT_QUANTIZER_UP_TO = 5_000_000
_GRAPH_LINKS = 32
_GRAPH_LISTS = ((50_000_000, 65_536), (math.inf, 262_144))


def choose_factory(n: int, d: int, memory_budget: int | None, n_shards: int = 1) -> str:
    """The most faithful index of n vectors of width d that fits a memory budget.

    Args:
        n: Vectors in the whole index.
        d: Their width.
        memory_budget: Bytes that the opened index may take, all shards together; None for no bound.
        n_shards: Pieces the index is cut into; each has its own copy of the centroids.

    Raises:
        ConfigError: If no candidate fits.
    """
    candidates = _candidates(n, d)
    sizes = [index_bytes(factory, n, d, n_shards) for factory in candidates]
    for factory, size in zip(candidates, sizes, strict=True):
        if memory_budget is None or size <= memory_budget:
            return factory
    raise ConfigError(
        f"--memory-budget of {memory_budget:,} bytes is too small for {n:,} vectors of width {d}",
        expected=f"at least {min(sizes):,} bytes",
        remedy="raise the budget, use fewer shards, or name a smaller index with --factory",
    )


def _candidates(n: int, d: int) -> list[str]:
    lists = f"IVF{_nlist(n)}"
    if n > _FLAT_QUANTIZER_UP_TO:
        lists += f"_HNSW{_GRAPH_LINKS}"
    inverted = [f"{lists},{codec}" if codec == "SQ8" else f"RR{d},{lists},{codec}" for codec in _CODECS]
    return ["Flat", *inverted] if n <= EXACT_UP_TO else inverted


def _nlist(n: int) -> int:
    """A power of two near 4 sqrt(n) that n rows can train; fixed steps where a graph finds the list."""
    if n > _FLAT_QUANTIZER_UP_TO:
        return next(nlist for bound, nlist in _GRAPH_LISTS if n <= bound)
    trainable = max(1, n // MIN_ROWS_PER_LIST)
    return int(min(2 ** round(math.log2(4 * math.sqrt(max(n, 1)))), 2 ** math.floor(math.log2(trainable))))


def index_bytes(factory: str, n: int, d: int, n_shards: int = 1) -> int:
    """Bytes that an opened index takes: codes and ids once, centroids and their graph once a shard."""
    centroid_bytes = 4 * d + (2 * 4 * _GRAPH_LINKS if "_HNSW" in factory else 0)
    return n * bytes_per_vector(factory, d) + n_shards * n_lists(empty_index(factory, d)) * centroid_bytes


def bytes_per_vector(factory: str, d: int) -> int:
    """Bytes that one vector takes in an index: its code and its 8-byte id.

    Raises:
        ConfigError: If faiss refuses the factory string.
    """
    index = empty_index(factory, d)
    lists = inverted_lists(index)
    # The stand-alone code of an index with lists names the list too; inside it the place does.
    code_bytes = index.sa_code_size() if lists is None else lists.code_size
    return int(code_bytes) + _ID_BYTES


def training_size(factory: str, n: int, d: int) -> int:
    """Rows to sample for training.

    256 per list as far as that is a million rows, but never fewer than 64 per list or than a codebook of 256
    codes wants; all rows where there are fewer, and none for an index that needs no training.

    Args:
        factory: A string that `check_factory` accepts.
        n: Vectors there are.
        d: Their width.
    """
    index = empty_index(factory, d)
    if index.is_trained:
        return 0
    nlist = n_lists(index)
    return min(n, max(64 * nlist, min(256 * nlist, 1_000_000), 10_000))


def check_factory(factory: str, d: int) -> None:
    """Refuse a factory string that faiss cannot build for inner product at width d.

    Raises:
        ConfigError: With the reason faiss gives, in one line.
    """
    empty_index(factory, d)


def empty_index(factory: str, d: int) -> faiss.Index:
    """An untrained index that takes ids of its own; one that keeps none is wrapped in an IDMap2.

    Raises:
        ConfigError: If faiss refuses the factory string.
    """
    try:
        index = faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _refused(factory, d, reason(error)) from None
    if n_lists(index) == 0:
        raise _refused(factory, d, "no inverted lists")
    keeps_ids = isinstance(behind_transforms(index), faiss.IndexIVF | faiss.IndexIDMap)
    return index if keeps_ids else faiss.IndexIDMap2(index)


def _refused(factory: str, d: int, why: str) -> ConfigError:
    return ConfigError(
        f"--factory {factory or repr(factory)}: {why}",
        expected=f"a faiss factory string for inner product at width {d}, such as IVF1024,SQ8",
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
