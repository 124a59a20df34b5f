"""Memory of the token kernels, allocated once and used by one cell after the other."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

COUNT_LIMIT = 2**16
"""Counts below it are ranked by a histogram, all other values by sorting: the ranks are the same."""

DIGIT_BITS = 11
DIGITS = 2**DIGIT_BITS
"""Buckets of a radix pass; three passes sort float32."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Rules(NamedTuple):
    """What the kernels need of `TokenRules` and the vocabulary."""

    cls_token: int
    most_genes: int
    seed: np.uint64
    top_bin: bool


class Scratch(NamedTuple):
    """Memory for one cell, V = tokens of the vocabulary; the first four are all zero between cells."""

    sums: npt.NDArray[np.float64]  # [V] by token
    present: npt.NDArray[np.uint64]  # [V / 64] bitmap of tokens
    tallies: npt.NDArray[np.int32]  # [COUNT_LIMIT] by count
    digits: npt.NDArray[np.int32]  # [DIGITS] by digit
    ranges: npt.NDArray[np.uint8]  # [COUNT_LIMIT, 2] lowest and highest bin by count
    tokens: npt.NDArray[np.int32]  # [V] and so the rest: the n genes of the cell, ascending by token
    values: npt.NDArray[np.float32]
    counts: npt.NDArray[np.uint32]
    lows: npt.NDArray[np.uint8]
    highs: npt.NDArray[np.uint8]
    bins: npt.NDArray[np.uint8]
    hashes: npt.NDArray[np.uint64]
    order: npt.NDArray[np.int32]
    spare: npt.NDArray[np.int32]


def scratch(n_tokens: int) -> Scratch:
    """Allocate the memory for one cell after the other of a vocabulary of n_tokens."""
    int32s = np.empty((3, n_tokens + 1), np.int32)
    bytes_ = np.empty((3, n_tokens), np.uint8)
    return Scratch(
        sums=np.zeros(n_tokens),
        present=np.zeros(n_tokens // 64 + 1, np.uint64),
        tallies=np.zeros(COUNT_LIMIT, np.int32),
        digits=np.zeros(DIGITS, np.int32),
        ranges=np.empty((COUNT_LIMIT, 2), np.uint8),
        tokens=int32s[0],  # one longer than V: the branch-free walk writes before it knows
        values=np.empty(n_tokens, np.float32),
        counts=np.empty(n_tokens, np.uint32),
        lows=bytes_[0],
        highs=bytes_[1],
        bins=bytes_[2],
        hashes=np.empty(n_tokens, np.uint64),
        order=int32s[1],
        spare=int32s[2],
    )
