"""Synthetic cells with realistic numbers of genes, and random genes and counts."""

from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.schema import BIN, COUNT, GENE, JOINID, N_GENES, Int64Array, ragged, ragged_array
from scgpt_ray.tokenizer.vocabulary import SPECIALS, Vocabulary

RAGGED = "ragged"
"""Instead of a number of tokens: 250 to 1,200 tokens, 600 on average, as in many atlases."""

WHOLE_HUMAN_TOKENS = 60_697
LAST_BIN = 50
_STRIDE = 7_919  # a prime, so that steps modulo the number of genes reach every gene once
_LENGTHS_AT_ONCE, _MAX_LENGTH = 4096, 1200


def synthetic_vocabulary(n_tokens: int = WHOLE_HUMAN_TOKENS) -> Vocabulary:
    """A vocabulary of genes GENE0, GENE1, ... and the special tokens."""
    return Vocabulary({f"GENE{number}": number for number in range(n_tokens - len(SPECIALS))})


def cell_lengths(tokens: str, n_cells: int, seed: int = 0) -> Int64Array:
    """Number of tokens of each cell, including <cls>, int64 [n_cells].

    Args:
        tokens: The number for every cell, or RAGGED.
        n_cells: Number of cells.
        seed: Seed of ragged lengths.
    """
    if tokens != RAGGED:
        return np.full(n_cells, int(tokens), np.int64)
    share = np.random.default_rng(seed).beta(1.4, 2.4, n_cells)  # mean 0.368
    return np.asarray(np.rint(250 + 950 * share), np.int64)


def lengths_of_file(path: Path, n_cells: int) -> Int64Array:
    """Number of tokens, at most 1,200, of the first cells of an .h5ad file, as if all genes were in the vocabulary."""
    # Imported here: the model stage runs on machines that have no anndata.
    from scgpt_ray.atlas.plan import cut
    from scgpt_ray.atlas.source import locate
    from scgpt_ray.config import CellSettings

    source = locate(str(path), CellSettings())
    genes = np.arange(len(source.var()), dtype=np.int32)
    parts = cut(source.joinids()[:n_cells], _LENGTHS_AT_ONCE)
    blocks = chain.from_iterable(source.read(part, genes) for part in parts)
    n_genes = np.concatenate([np.diff(ragged(cells[GENE])[0]) for cells in blocks])
    return np.asarray(np.minimum(n_genes + 1, _MAX_LENGTH))


def synthetic_cells(n_genes: Int64Array, vocabulary_size: int, *, log1p: bool = False) -> pa.Table:
    """Make CELLS with distinct genes, and counts that are mostly one, like UMI counts.

    Args:
        n_genes: Number of genes of each cell, fewer than the vocabulary has.
        vocabulary_size: Number of tokens, including special tokens.
        log1p: Whether values are log1p of counts scaled to 10,000 per cell.
    """
    rng = np.random.default_rng(0)
    offsets = np.append(0, np.cumsum(n_genes))
    count = np.minimum(rng.zipf(2.2, offsets[-1]), 5_000).astype(np.float32)
    if log1p:
        totals = np.add.reduceat(count, offsets[:-1])
        count = np.log1p(count * np.repeat(10_000 / totals, n_genes)).astype(np.float32)
    gene = _genes(n_genes, vocabulary_size - len(SPECIALS), rng)
    return pa.table(
        {
            JOINID: np.arange(len(n_genes)),
            GENE: ragged_array(offsets, gene.astype(np.int32)),
            COUNT: ragged_array(offsets, count),
        }
    )


def synthetic_tokens(lengths: Int64Array, vocabulary_size: int, cls_token: int, seed: int = 0) -> pa.Table:
    """Make TOKENS with distinct genes and random bins, without the tokeniser."""
    rng = np.random.default_rng(seed)
    offsets = np.append(0, np.cumsum(lengths))
    gene = _genes(lengths, vocabulary_size - len(SPECIALS), rng).astype(
        np.uint16 if vocabulary_size <= 2**16 else np.int32
    )
    bins = rng.integers(1, LAST_BIN + 1, offsets[-1]).astype(np.uint8)
    gene[offsets[:-1]], bins[offsets[:-1]] = cls_token, 0
    return pa.table(
        {
            JOINID: np.arange(len(lengths)),
            N_GENES: (lengths - 1).astype(np.int32),
            GENE: ragged_array(offsets, gene),
            BIN: ragged_array(offsets, bins),
        }
    )


def _genes(lengths: Int64Array, n_genes: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Distinct ascending genes of each cell: a random first gene, then steps of _STRIDE around the vocabulary."""
    assert lengths.max(initial=0) <= n_genes, "a cell has distinct genes"
    assert n_genes % _STRIDE, "steps around the vocabulary meet every gene"
    ends = np.cumsum(lengths)
    rank = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    first = np.repeat(rng.integers(0, n_genes, len(lengths)), lengths)
    cell = np.repeat(np.arange(len(lengths)), lengths)
    # Sorted by cell and gene at once.
    return np.asarray(np.sort(cell * n_genes + (first + rank * _STRIDE) % n_genes) % n_genes)
