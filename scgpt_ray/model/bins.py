"""The numba kernels under `tokens`: one cell after the other through one scratch memory, without the GIL.

**Bins are rank statistics.** Upstream cuts the n values of a cell at 50 edges,
`quantile(x, linspace(0, 1, 50))` with linear interpolation, and gives x a bin in {R + 1, ..., L},
where L = #(edges <= x) and R = #(edges < x), or the bin L where L = R. Edge i lies at the position
p_i = linspace(0, 1, 50)[i] * (n - 1) of the sorted values: on the value there if p_i is whole, else between
the values at floor(p_i) and ceil(p_i). If x occupies the sorted positions lo ... hi - 1,

    edge i <= x   exactly if   ceil(p_i) < hi         so   L = #{i : ceil(p_i) < hi}
    edge i <  x   exactly if   floor(p_i) < lo        so   R = #{i : floor(p_i) < lo}

so no edge is ever computed, and raw, normalised and log1p values of a cell have the same bins. Upstream's own
edges are rounded: it differs only where an interpolated edge is rounded onto a value.

Values are finite and positive when they come here (a reader of cells refuses others), and tokens are in the
vocabulary. Loops are written out because numba takes seconds to compile slices and sorts. All kernels are in this
file, because numba's cache does not notice a change in another one.
"""

import numba
import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros

from scgpt_ray.model.scratch import COUNT_LIMIT, DIGIT_BITS, DIGITS, Bytes, Float32s, Int32s, Int64s, Rules, Scratch

N_BINS = 51
"""Number of bin codes: CLS_BIN, and 1 to 50 for genes."""

CLS_BIN = 0
"""The bin code of <cls>."""

N_EDGES = N_BINS - 1
QUANTILES = np.linspace(0.0, 1.0, N_EDGES)
"""Where upstream cuts the sorted values of a cell."""

FEW = 4
"""Tokens taken from a bitmap word without a branch; 2,000 genes of whole-human leave two in a word."""

ZERO, ONE = np.uint64(0), np.uint64(1)
HALF = np.uint64(32)
TOP_DIGIT = np.uint64(64 - DIGIT_BITS)
WORD, WORD_BITS = np.uint32(6), np.uint32(63)
DIGIT, DIGIT_MASK = np.uint32(DIGIT_BITS), np.uint32(DIGITS - 1)
# Steele, Lea, Flood (2014), Fast splittable pseudorandom number generators: increment and multipliers.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX1, MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFT1, SHIFT2, SHIFT3 = np.uint64(30), np.uint64(27), np.uint64(31)

kernel = numba.njit(nogil=True, cache=True)


@kernel
def tokenize_cells(
    offsets: Int64s,
    gene: Int32s,
    count: Float32s,
    cell: Scratch,
    rules: Rules,
    token_gene: Int32s,
    token_bin: Bytes,
) -> tuple[Int64s, Int32s]:
    """Tokenise cells one by one.

    Args:
        offsets: [n_cells + 1], boundaries of the cells in gene and count.
        gene: Tokens in any order, also repeatedly.
        count: Finite and not negative.
        cell: Scratch memory.
        rules: What to do with ties and long cells.
        token_gene: Output, uint16 or int32, with room for <cls> and most_genes or all genes of a cell.
        token_bin: Output, likewise.

    Returns:
        Boundaries of the cells in the output, [n_cells + 1], and their numbers of genes, [n_cells].
    """
    n_cells = offsets.size - 1
    token_offsets = np.zeros(n_cells + 1, np.int64)
    n_genes = np.zeros(n_cells, np.int32)
    end = 0
    for i in range(n_cells):
        start, stop = offsets[i], offsets[i + 1]
        n = canonicalise(gene[start:stop], count[start:stop], cell)
        if n > 0:
            bin_ranges(n, cell)
            draw(n, cell, rules)
            end = write(n, cell, rules, token_gene, token_bin, end)
        n_genes[i] = n
        token_offsets[i + 1] = end
    return token_offsets, n_genes


@kernel
def canonicalise(gene: Int32s, count: Float32s, cell: Scratch) -> int:
    """Fill cell.tokens, ascending, and cell.values from genes in any order; return how many genes there are.

    Repeats are summed in float64 and rounded once, so that their order does not show.
    """
    for i in range(gene.size):
        if count[i] > 0:
            token = np.uint32(gene[i])
            cell.sums[token] += count[i]
            cell.present[token >> WORD] |= ONE << np.uint64(token & WORD_BITS)
    n = 0
    for word in range(cell.present.size):
        bits = cell.present[word]
        cell.present[word] = ZERO
        first = word << 6
        for _ in range(FEW):
            cell.tokens[n] = first + trailing_zeros(bits)
            n += bits != ZERO
            bits &= bits - ONE
        while bits != ZERO:
            cell.tokens[n] = first + trailing_zeros(bits)
            n += 1
            bits &= bits - ONE
    for i in range(n):
        token = np.uint32(cell.tokens[i])
        cell.values[i] = cell.sums[token]
        cell.sums[token] = 0.0
    return n


@kernel
def bin_ranges(n: int, cell: Scratch) -> None:
    """Fill cell.lows and cell.highs from cell.values[:n]: min(R + 1, L) and L, see the top of this file."""
    counts = True
    for i in range(n):
        value = cell.values[i]
        counts &= (value == np.floor(value)) & (value < np.float32(COUNT_LIMIT))
    if counts:
        rank_counts(n, cell)
    else:
        rank_values(n, cell)


@kernel
def edges_passed(n: int, low: int, high: int, right: int, left: int) -> tuple[int, int]:
    """Advance (R, L) to the values at sorted positions low ... high - 1 of n."""
    while right < N_EDGES and np.floor(QUANTILES[right] * (n - 1)) < low:
        right += 1
    while left < N_EDGES and np.ceil(QUANTILES[left] * (n - 1)) < high:
        left += 1
    return right, left


@kernel
def rank_counts(n: int, cell: Scratch) -> None:
    """Fill the bin ranges of integers below COUNT_LIMIT, by a histogram."""
    top = np.uint32(0)
    for i in range(n):
        count = np.uint32(cell.values[i])
        cell.counts[i] = count
        top = max(top, count)
    for i in range(n):
        cell.tallies[cell.counts[i]] += 1
    right = left = high = 0
    for value in range(1, top + 1):
        tally = cell.tallies[value]
        if tally > 0:
            cell.tallies[value] = 0
            right, left = edges_passed(n, high, high + tally, right, left)
            high += tally
            cell.ranges[value, 0] = min(right + 1, left)
            cell.ranges[value, 1] = left
    for i in range(n):
        cell.lows[i] = cell.ranges[cell.counts[i], 0]
        cell.highs[i] = cell.ranges[cell.counts[i], 1]


@kernel
def rank_values(n: int, cell: Scratch) -> None:
    """Fill the bin ranges of any positive values, by sorting."""
    order = sort_values(n, cell)
    right = left = low = 0
    while low < n:
        value = cell.values[order[low]]
        high = low + 1
        while high < n and cell.values[order[high]] == value:
            high += 1
        right, left = edges_passed(n, low, high, right, left)
        for k in range(low, high):
            cell.lows[order[k]] = min(right + 1, left)
            cell.highs[order[k]] = left
        low = high


@kernel
def sort_values(n: int, cell: Scratch) -> Int32s:
    """Return the order of cell.values[:n], by a radix sort: positive floats order like their bits."""
    keys = cell.values.view(np.uint32)
    order, spare = cell.order, cell.spare
    for i in range(n):
        order[i] = i
    for digit in range(3):
        shift = np.uint32(digit) * DIGIT
        starts = cell.digits
        starts[:] = 0
        for i in range(n):
            starts[(keys[i] >> shift) & DIGIT_MASK] += 1
        start = 0
        for bucket in range(DIGITS):
            starts[bucket], start = start, start + starts[bucket]
        for k in range(n):
            i = order[k]
            bucket = (keys[i] >> shift) & DIGIT_MASK
            spare[starts[bucket]] = i
            starts[bucket] += 1
        order, spare = spare, order
    return order


@kernel
def mix(x: np.uint64) -> np.uint64:
    """One step of splitmix64, a bijection of 64-bit integers."""
    x += GOLDEN
    x = (x ^ (x >> SHIFT1)) * MIX1
    x = (x ^ (x >> SHIFT2)) * MIX2
    return x ^ (x >> SHIFT3)


@kernel
def content_key(n: int, cell: Scratch, seed: np.uint64) -> np.uint64:
    """Hash the seed and the set of (token, lowest bin, highest bin) of a cell; a sum has no order."""
    digest = ZERO
    for i in range(n):
        span = np.uint64(cell.lows[i]) << np.uint64(8) | np.uint64(cell.highs[i])
        digest += mix(np.uint64(cell.tokens[i]) << np.uint64(16) | span)
    key: np.uint64 = mix(mix(mix(seed) + np.uint64(n)) + digest)
    return key


@kernel
def draw(n: int, cell: Scratch, rules: Rules) -> None:
    """Fill cell.bins, and cell.hashes where genes must be sampled.

    The high half of a gene's hash is its draw from lows ... highs; a hash of the hash is its lot in sampling.
    """
    key = content_key(n, cell, rules.seed)
    for i in range(n):
        cell.hashes[i] = mix(key ^ (np.uint64(cell.tokens[i]) * MIX1))
    for i in range(n):
        low = np.uint64(cell.highs[i] if rules.top_bin else cell.lows[i])
        width = np.uint64(cell.highs[i]) - low + ONE
        cell.bins[i] = low + ((cell.hashes[i] >> HALF) * width >> HALF)
    if n > rules.most_genes:
        for i in range(n):
            cell.hashes[i] = mix(cell.hashes[i] + MIX2)


@kernel
def write(n: int, cell: Scratch, rules: Rules, token_gene: Int32s, token_bin: Bytes, end: int) -> int:
    """Append <cls> and the cell's genes, sampled where too many, to the output; return its new end."""
    token_gene[end] = rules.cls_token
    token_bin[end] = CLS_BIN
    end += 1
    if n <= rules.most_genes:
        for i in range(n):
            token_gene[end + i] = cell.tokens[i]
            token_bin[end + i] = cell.bins[i]
        return end + n
    last = end + rules.most_genes
    largest = kth_smallest_hash(n, rules.most_genes, cell)
    i = 0
    while end < last:  # without a branch on the hash, which nobody can predict
        token_gene[end] = cell.tokens[i]
        token_bin[end] = cell.bins[i]
        end += cell.hashes[i] <= largest
        i += 1
    return end


@kernel
def kth_smallest_hash(n: int, k: int, cell: Scratch) -> np.uint64:
    """Return the k-th smallest of cell.hashes[:n], which are distinct and uniform; 1 <= k <= n.

    A histogram of the top digit finds its bucket, in which about n / DIGITS hashes are left to sort.
    """
    cell.digits[:] = 0
    for i in range(n):
        cell.digits[cell.hashes[i] >> TOP_DIGIT] += 1
    bucket = np.uint64(0)
    while cell.digits[bucket] < k:
        k -= cell.digits[bucket]
        bucket += ONE
    candidates = np.empty(cell.digits[bucket], np.uint64)
    found = 0
    for i in range(n):
        if cell.hashes[i] >> TOP_DIGIT == bucket:
            place = found
            while place > 0 and candidates[place - 1] > cell.hashes[i]:
                candidates[place] = candidates[place - 1]
                place -= 1
            candidates[place] = cell.hashes[i]
            found += 1
    kth: np.uint64 = candidates[k - 1]
    return kth
