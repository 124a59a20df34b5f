"""Numba kernels of `rules`: one cell after another in one scratch memory, without the GIL.

Values are finite and >= 0 (sources refuse others), and tokens are in the vocabulary. Loops are written out because
numba takes seconds to compile slices and sorts. All kernels are in this file because numba's cache does not notice
changes in other files. Each is called with arguments of one type: two processes that compile a kernel for different
types at the same time can exchange the compiled codes in numba's cache.
"""

from typing import Any

import numba
import numba.extending
import numpy as np

from scgpt_ray.schema import CLS_BIN
from scgpt_ray.tokenizer.workspace import COUNT_LIMIT, LANES, Bytes, Float32s, Int32s, Int64s, Rules, Scratch, Uint64s

N_BINS = 51
"""Number of bin codes: CLS_BIN, and 1 to 50 for genes."""

N_EDGES = N_BINS - 1
QUANTILES = np.linspace(0.0, 1.0, N_EDGES)
"""Quantiles of the values of a cell that are the edges of upstream's bins."""

ZERO, ONE, HALF = np.uint64(0), np.uint64(1), np.uint64(32)
TOP_DIGIT, TOP_DIGITS = np.uint64(56), 256
WORD, WORD_BITS = np.uint32(6), np.uint32(63)
LOW, HIGH = np.uint16(8), np.uint16(255)
TOP_COUNT = np.float32(COUNT_LIMIT - 1)
# Steele, Lea, Flood (2014), Fast splittable pseudorandom number generators: increment and multipliers.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX1, MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFT1, SHIFT2, SHIFT3 = np.uint64(30), np.uint64(27), np.uint64(31)

kernel = numba.njit(nogil=True, cache=True)


@kernel
def tokenize_cells(
    offsets: Int64s, gene: Int32s, count: Float32s, cell: Scratch, rules: Rules, token_gene: Int32s, token_bin: Bytes
) -> tuple[Int64s, Int32s, Uint64s]:
    """Tokenise cells one by one.

    Args:
        offsets: [n_cells + 1], boundaries of the cells in gene and count.
        gene: Tokens in any order, possibly repeated.
        count: Finite values >= 0.
        cell: Scratch memory.
        rules: Rules for ties and long cells.
        token_gene: Output, large enough for <cls> and up to most_genes genes of each sample of each cell.
        token_bin: Output, of the same length.

    Returns:
        Boundaries of the cells in the output, [n_cells + 1], their numbers of genes, [n_cells], and their content keys,
        [n_cells].
    """
    token_offsets, n_genes = np.zeros(offsets.size, np.int64), np.zeros(offsets.size - 1, np.int32)
    keys = np.zeros(n_genes.size, np.uint64)
    end = 0
    for i in range(n_genes.size):
        start, stop = offsets[i], offsets[i + 1]
        n = canonicalise(gene[start:stop], count[start:stop], cell)
        if n > 0:
            bin_ranges(n, cell)
            for sample in range(n_samples(n, cell, rules)):
                key = content_key(n, cell, rules.seed + np.uint64(sample) * GOLDEN)
                draw(n, cell, rules, key)
                end = write(n, cell, rules, token_gene, token_bin, end)
                if sample == 0:
                    keys[i] = key
        n_genes[i] = n
        token_offsets[i + 1] = end
    return token_offsets, n_genes, keys


@kernel
def count_cells(
    offsets: Int64s, gene: Int32s, count: Float32s, cell: Scratch, kept_gene: Int32s, kept_count: Float32s
) -> tuple[Int64s, Uint64s]:
    """Sum repeated genes, drop zeros and sort by token, cell by cell.

    Args:
        offsets: [n_cells + 1], boundaries of the cells in gene and count.
        gene: Tokens in any order, possibly repeated.
        count: Finite values >= 0.
        cell: Scratch memory.
        kept_gene: Output, as long as gene.
        kept_count: Output, as long as gene.

    Returns:
        Boundaries of the cells in the output, [n_cells + 1], and content keys, [n_cells], 0 for cells without counts.
    """
    kept_offsets, keys = np.zeros(offsets.size, np.int64), np.zeros(offsets.size - 1, np.uint64)
    bits = cell.values.view(np.uint32)
    end = 0
    for i in range(keys.size):
        n = canonicalise(gene[offsets[i] : offsets[i + 1]], count[offsets[i] : offsets[i + 1]], cell)
        digest = ZERO
        for k in range(n):
            kept_gene[end + k], kept_count[end + k] = cell.tokens[k], cell.values[k]
            digest += mix(np.uint64(cell.tokens[k]) << HALF | np.uint64(bits[k]))
        if n > 0:
            keys[i] = mix(mix(np.uint64(n)) + digest)
        end += n
        kept_offsets[i + 1] = end
    return kept_offsets, keys


@kernel
def canonicalise(gene: Int32s, count: Float32s, cell: Scratch) -> int:
    """Fill cell.tokens (ascending) and cell.values from genes in any order; return the number of genes.

    Repeats are summed in float64 and rounded once, so that their order does not matter.
    """
    if ascending(gene, count):
        for i in range(gene.size):
            cell.tokens[i], cell.values[i] = gene[i], count[i]
        return len(gene)
    n: int = mark_present(gene, count, cell)
    for i in range(gene.size):
        if count[i] > 0:
            token = np.uint32(gene[i])
            # Rank among the tokens: set bits in the words before, and lower set bits in the same word.
            lower = cell.present[token >> WORD] & ((ONE << np.uint64(token & WORD_BITS)) - ONE)
            place = cell.before[token >> WORD] + set_bits(lower)
            cell.tokens[place] = token
            cell.sums[place] += count[i]
    for i in range(n):
        cell.values[i], cell.sums[i] = cell.sums[i], 0.0
    for word in range(cell.present.size):
        cell.present[word] = ZERO
    return n


@kernel
def ascending(gene: Int32s, count: Float32s) -> bool:
    """Whether genes ascend strictly and all counts are positive."""
    for i in range(gene.size):  # noqa: SIM110  (numba compiles no all())
        if not count[i] > 0 or (i > 0 and gene[i - 1] >= gene[i]):
            return False
    return True


@kernel
def mark_present(gene: Int32s, count: Float32s, cell: Scratch) -> int:
    """Set the bits of cell.present and fill cell.before; return the number of set bits."""
    for i in range(gene.size):
        if count[i] > 0:
            token = np.uint32(gene[i])
            cell.present[token >> WORD] |= ONE << np.uint64(token & WORD_BITS)
    n = 0
    for word in range(cell.present.size):
        cell.before[word] = n
        n += set_bits(cell.present[word])
    return n


@numba.extending.intrinsic
def set_bits(_context: Any, word: Any) -> Any:
    """Number of set bits in a uint64, in one instruction."""
    return numba.uint64(word), lambda _, builder, __, args: builder.ctpop(args[0])


@kernel
def bin_ranges(n: int, cell: Scratch) -> None:
    """Fill cell.spans from cell.values[:n]: lowest << 8 | highest bin, min(R + 1, L) and L of `rules`."""
    top, others = np.uint32(0), 0
    for i in range(n):
        count = np.uint32(min(cell.values[i], TOP_COUNT))
        others += np.float32(count) != cell.values[i]
        cell.counts[i] = count
        top = max(top, count)
    if others == 0:
        rank_counts(n, top, cell)
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
def rank_counts(n: int, top: np.uint32, cell: Scratch) -> None:
    """Fill the bin ranges of cell.counts, integers up to `top`, by a histogram."""
    # Most counts are ones: in a single lane, each addition would wait for the one before.
    for i in range(n):
        cell.tallies[cell.counts[i], i & (LANES - 1)] += 1
    right = left = high = 0
    for value in range(1, top + 1):
        tally = 0
        for lane in range(LANES):
            tally += cell.tallies[value, lane]
            cell.tallies[value, lane] = 0
        if tally > 0:
            right, left = edges_passed(n, high, high + tally, right, left)
            high += tally
            cell.ranges[value] = min(right + 1, left) << 8 | left
    for i in range(n):
        cell.spans[i] = cell.ranges[cell.counts[i]]


@kernel
def rank_values(n: int, cell: Scratch) -> None:
    """Fill the bin ranges of arbitrary positive values, by sorting."""
    pairs = sorted_pairs(n, cell)
    right = left = low = 0
    while low < n:
        value = pairs[low] >> HALF
        high = low + 1
        while high < n and pairs[high] >> HALF == value:
            high += 1
        right, left = edges_passed(n, low, high, right, left)
        for k in range(low, high):
            cell.spans[np.uint32(pairs[k])] = min(right + 1, left) << 8 | left
        low = high


@kernel
def sorted_pairs(n: int, cell: Scratch) -> Uint64s:
    """Return cell.values[:n] in ascending order as uint64, with the position in the lower half, by a radix sort.

    Positive floats order like their bit patterns. The lowest one is subtracted, so that fewer bits are sorted.
    """
    bits = cell.values.view(np.uint32)
    lowest = highest = bits[0]
    for i in range(n):
        lowest, highest = min(lowest, bits[i]), max(highest, bits[i])
    width = np.uint64(0)
    while np.uint64(highest - lowest) >> (width + width + width) > ZERO:
        width += ONE
    mask = (ONE << width) - ONE
    pairs, spare = cell.hashes, cell.spare
    cell.digits[:] = 0
    for i in range(n):
        key = np.uint64(bits[i] - lowest)
        pairs[i] = key << HALF | np.uint64(i)
        for digit in range(3):  # interleaved: equal values make each addition wait for the one before
            cell.digits[digit, (key >> (np.uint64(digit) * width)) & mask] += 1
    for digit in range(3):
        shift, starts, start = HALF + np.uint64(digit) * width, cell.digits[digit], 0
        for bucket in range(mask + ONE):
            starts[bucket], start = start, start + starts[bucket]
        for i in range(n):
            bucket = (pairs[i] >> shift) & mask
            spare[starts[bucket]] = pairs[i]
            starts[bucket] += 1
        pairs, spare = spare, pairs
    return pairs


@kernel
def mix(x: np.uint64) -> np.uint64:
    """One step of splitmix64, a bijection of 64-bit integers."""
    x += GOLDEN
    x = (x ^ (x >> SHIFT1)) * MIX1
    x = (x ^ (x >> SHIFT2)) * MIX2
    return x ^ (x >> SHIFT3)


@kernel
def content_key(n: int, cell: Scratch, seed: np.uint64) -> np.uint64:
    """Hash the seed and the set of (token, lowest bin, highest bin) of a cell; the sum does not depend on order."""
    digest = ZERO
    for i in range(n):
        digest += mix(np.uint64(cell.tokens[i]) << np.uint64(16) | np.uint64(cell.spans[i]))
    return np.uint64(mix(mix(mix(seed) + np.uint64(n)) + digest))


@kernel
def n_samples(n: int, cell: Scratch, rules: Rules) -> int:
    """Number of samples of a cell: one, unless genes must be sampled or a bin must be drawn."""
    if n > rules.most_genes:
        return rules.samples
    for i in range(n if rules.samples > 1 and not rules.top_bin else 0):
        if cell.spans[i] >> LOW != cell.spans[i] & HIGH:
            return rules.samples
    return 1


@kernel
def draw(n: int, cell: Scratch, rules: Rules, key: np.uint64) -> None:
    """Fill cell.bins, and cell.hashes if genes must be sampled.

    The upper half of a gene's hash draws its bin from its range; a hash of that hash decides whether it is sampled.
    """
    for i in range(n):
        cell.hashes[i] = mix(key ^ (np.uint64(cell.tokens[i]) * MIX1))
    for i in range(n):
        high = np.uint64(cell.spans[i] & HIGH)
        low = high if rules.top_bin else np.uint64(cell.spans[i] >> LOW)
        cell.bins[i] = low + ((cell.hashes[i] >> HALF) * (high - low + ONE) >> HALF)
    if n > rules.most_genes:
        for i in range(n):
            cell.hashes[i] = mix(cell.hashes[i] + MIX2)


@kernel
def write(n: int, cell: Scratch, rules: Rules, token_gene: Int32s, token_bin: Bytes, end: int) -> int:
    """Append <cls> and the genes of the cell, sampled if too many, to the output; return its new end."""
    token_gene[end], token_bin[end] = rules.cls_token, CLS_BIN
    end += 1
    if n <= rules.most_genes:
        for i in range(n):
            token_gene[end + i], token_bin[end + i] = cell.tokens[i], cell.bins[i]
        return end + n
    largest = kth_smallest_hash(n, rules.most_genes, cell)
    i, last = 0, end + rules.most_genes
    while end < last:  # no branch on the hash, because it would be unpredictable
        token_gene[end], token_bin[end] = cell.tokens[i], cell.bins[i]
        end += cell.hashes[i] <= largest
        i += 1
    return end


@kernel
def kth_smallest_hash(n: int, k: int, cell: Scratch) -> np.uint64:
    """Return the k-th smallest of cell.hashes[:n], which are distinct and uniform; 1 <= k <= n.

    A histogram of the top digit finds its bucket, which leaves about n / 256 hashes to sort.
    """
    tallies = cell.digits[0]
    for bucket in range(TOP_DIGITS):
        tallies[bucket] = 0
    for i in range(n):
        tallies[cell.hashes[i] >> TOP_DIGIT] += 1
    top = ZERO
    while tallies[top] < k:
        k -= tallies[top]
        top += ONE
    candidates, found = cell.spare, 0
    for i in range(n):
        if cell.hashes[i] >> TOP_DIGIT == top:
            place = found
            while place > 0 and candidates[place - 1] > cell.hashes[i]:
                candidates[place] = candidates[place - 1]
                place -= 1
            candidates[place] = cell.hashes[i]
            found += 1
    return np.uint64(candidates[k - 1])
