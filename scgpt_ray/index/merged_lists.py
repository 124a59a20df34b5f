"""The inverted lists of several fast-scan indexes as those of one, in memory.

Shards are copies of one template, so that a list has the same centroid in each of them. Merged, it is searched with one
look-up table and without the padding of each shard.

Fast scan keeps the codes of a list in blocks of 32 (or a multiple): 4 bits per vector and sub-quantiser, transposed and
interleaved. They are unpacked, joined and packed again; `merge_from` of faiss 1.15 writes out of bounds if a list
already holds a multiple of as many codes as a block has bytes.

Shapes: B blocks, N codes, P pairs of sub-quantisers (bytes of a code), L lists, S shards.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from scgpt_ray.index.factory import inverted_lists
from scgpt_ray.index.search import in_threads
from scgpt_ray.schema import Int64Array

_Bytes: TypeAlias = npt.NDArray[np.uint8]

_faiss: Any = faiss  # the stubs lack pointers
_HALF = 16  # vectors whose codes are the low, or the high, four bits of the same bytes
_ORDER = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])  # of these vectors
_LOW, _HIGH = np.uint8(0x0F), np.uint8(0xF0)
_CODES_AT_ONCE = 2**15  # per thread: about 5 MB of unpacked and packed codes


def can_merge(index: faiss.Index) -> bool:
    """Whether an index is of the kind whose lists `merge_lists` can merge: product-quantised fast scan."""
    return isinstance(inverted_lists(index), faiss.IndexIVFPQFastScan)


def merge_lists(indexes: Sequence[faiss.Index], first_ids: Sequence[int]) -> faiss.Index:
    """Merge the lists of some copies of a template into those of the first index; the others lose theirs.

    Args:
        indexes: Indexes for which `can_merge` holds.
        first_ids: What is added to the ids of each index.

    Returns:
        The first index. It takes no more memory than all did; while they are merged, up to a third more.
    """
    lists: list[Any] = [inverted_lists(index) for index in indexes]
    held: list[Any] = [faiss.downcast_InvertedLists(each.invlists) for each in lists]
    n_lists = int(lists[0].nlist)
    sizes_SL = np.array([[each.list_size(number) for number in range(n_lists)] for each in held], np.int64)
    total_L = sizes_SL.sum(axis=0)
    ends = np.searchsorted(np.cumsum(total_L), np.arange(_CODES_AT_ONCE, total_L.sum(), _CODES_AT_ONCE)) + 1
    bounds = np.unique([0, *ends.tolist(), n_lists])

    def merge(place: int) -> None:
        _merge_some(held, sizes_SL, first_ids, np.arange(bounds[place], bounds[place + 1]))

    in_threads(merge, range(len(bounds) - 1), faiss.omp_get_max_threads())
    index = indexes[0]
    index.ntotal = lists[0].ntotal = int(total_L.sum())
    return index


def _merge_some(held: Sequence[Any], sizes_SL: Int64Array, first_ids: Sequence[int], numbers_L: Int64Array) -> None:
    """Merge some lists of all indexes."""
    n_block, block_bytes = int(held[0].n_per_block), int(held[0].block_size)
    codes, ids, places = [], [], []
    for lists, size_L, first_id in zip(held, sizes_SL[:, numbers_L], first_ids, strict=True):
        filled = np.flatnonzero(size_L)
        n_blocks = -(-size_L[filled] // n_block)
        packed, of_list = [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
        for number, n, blocks in zip(
            numbers_L[filled].tolist(), size_L[filled].tolist(), n_blocks.tolist(), strict=True
        ):
            packed.append(_faiss.rev_swig_ptr(lists.get_codes(number), blocks * block_bytes))
            of_list.append(_faiss.rev_swig_ptr(lists.get_ids(number), n))
        padded_NP = unpacked(np.concatenate(packed).reshape(-1, block_bytes), n_block)
        codes.append(padded_NP[_ranges(_starts(n_blocks) * n_block, size_L[filled])])
        ids.append(np.concatenate(of_list) + first_id)
        places.append(np.repeat(filled, size_L[filled]))
        for number in numbers_L[filled].tolist():
            lists.resize(number, 0)
    order = np.argsort(np.concatenate(places), kind="stable")
    _fill(
        held[0], numbers_L, sizes_SL[:, numbers_L].sum(axis=0), np.concatenate(codes)[order], np.concatenate(ids)[order]
    )


def _fill(lists: Any, numbers_L: Int64Array, size_L: Int64Array, codes_NP: _Bytes, ids_N: Int64Array) -> None:
    """Fill empty lists with codes and ids, which are in the order of the lists."""
    n_block = int(lists.n_per_block)
    n_blocks = -(-size_L // n_block)
    padded_NP = np.zeros((n_blocks.sum() * n_block, codes_NP.shape[1]), np.uint8)
    padded_NP[_ranges(_starts(n_blocks) * n_block, size_L)] = codes_NP
    packed_BX = packed_in_blocks(padded_NP, n_block)
    starts = zip(numbers_L.tolist(), size_L.tolist(), _starts(size_L).tolist(), _starts(n_blocks).tolist(), strict=True)
    for number, n, first, block in starts:
        if n:
            of_list = _faiss.swig_ptr(ids_N[first : first + n])
            lists.add_entries(number, n, of_list, _faiss.swig_ptr(packed_BX[block:]))


def unpacked(packed_BX: _Bytes, n_block: int) -> _Bytes:
    """Blocks of fast scan, uint8 [B, bytes of a block], as codes, uint8 [B * n_block, P]."""
    pairs = packed_BX.reshape(len(packed_BX), packed_BX.shape[1] // n_block, n_block // (2 * _HALF), 2, _HALF)
    even, odd = pairs[..., 0, :], pairs[..., 1, :]  # [B, P, n_block / 32, 16]
    n, n_pairs, groups, _ = even.shape
    codes = np.empty((n, groups, 2, _HALF, n_pairs), np.uint8)
    codes[:, :, 0, _ORDER] = (even & _LOW | odd << 4).transpose(0, 2, 3, 1)
    codes[:, :, 1, _ORDER] = (even >> 4 | odd & _HIGH).transpose(0, 2, 3, 1)
    return codes.reshape(-1, n_pairs)


def packed_in_blocks(codes_NP: _Bytes, n_block: int) -> _Bytes:
    """The inverse of `unpacked`; the number of codes is a multiple of `n_block`."""
    n_pairs = codes_NP.shape[1]
    codes = codes_NP.reshape(-1, n_block // (2 * _HALF), 2, _HALF, n_pairs)[:, :, :, _ORDER].transpose(0, 4, 1, 2, 3)
    low, high = codes[..., 0, :], codes[..., 1, :]
    packed = np.empty((*low.shape[:3], 2, _HALF), np.uint8)
    packed[..., 0, :] = low & _LOW | high << 4
    packed[..., 1, :] = low >> 4 | high & _HIGH
    return packed.reshape(len(packed), -1)


def _starts(lengths: Int64Array) -> Int64Array:
    """Where ranges of these lengths start that follow one another."""
    return np.cumsum(lengths) - lengths


def _ranges(starts: Int64Array, lengths: Int64Array) -> Int64Array:
    """The numbers of several ranges, one after the other."""
    return np.arange(lengths.sum()) + np.repeat(starts - _starts(lengths), lengths)
