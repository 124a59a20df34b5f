"""Scratch memory of the token kernels, allocated once and reused for every cell."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

COUNT_LIMIT = 2**16
"""Counts below it are ranked by a histogram, other values by sorting; the ranks are the same."""

LANES = 4
"""Partial histograms of counts, which are added up."""

DIGIT_BITS = 11
DIGITS = 2**DIGIT_BITS
"""Buckets of a radix pass; three passes sort float32."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint64s = npt.NDArray[np.uint64]
Float32s = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Rules(NamedTuple):
    """What the kernels need of `TokenRules` and the vocabulary."""

    cls_token: int
    most_genes: int
    seed: np.uint64
    top_bin: bool
    samples: int


class Scratch(NamedTuple):
    """Memory for one cell; V = tokens of the vocabulary. The first three fields are zero between cells."""

    present: Uint64s  # [V / 64] bitmap of tokens
    tallies: npt.NDArray[np.int32]  # [COUNT_LIMIT, LANES] by count
    sums: npt.NDArray[np.float64]  # [V] by place among the tokens
    before: npt.NDArray[np.uint64]  # [V / 64] number of tokens in the earlier words of the bitmap
    ranges: npt.NDArray[np.uint16]  # [COUNT_LIMIT] lowest << 8 | highest bin by count
    digits: Int32s  # [3, DIGITS] by digit
    tokens: Int32s  # [V], as the fields below: the n genes of the cell
    values: Float32s
    counts: npt.NDArray[np.uint32]
    spans: npt.NDArray[np.uint16]  # lowest << 8 | highest bin
    bins: Bytes
    hashes: Uint64s
    spare: Uint64s


def scratch(n_tokens: int) -> Scratch:
    """Allocate scratch memory for a vocabulary of n_tokens."""
    return Scratch(
        present=np.zeros(n_tokens // 64 + 1, np.uint64),
        tallies=np.zeros((COUNT_LIMIT, LANES), np.int32),
        sums=np.zeros(n_tokens),
        before=np.empty(n_tokens // 64 + 1, np.uint64),
        ranges=np.empty(COUNT_LIMIT, np.uint16),
        digits=np.empty((3, DIGITS), np.int32),
        tokens=np.empty(n_tokens, np.int32),
        values=np.empty(n_tokens, np.float32),
        counts=np.empty(n_tokens, np.uint32),
        spans=np.empty(n_tokens, np.uint16),
        bins=np.empty(n_tokens, np.uint8),
        hashes=np.empty(n_tokens, np.uint64),
        spare=np.empty(n_tokens, np.uint64),
    )
