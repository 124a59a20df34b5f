"""From counts to tokens: which genes of a cell the model sees, and the bin of each.

A cell is a set of (gene, value > 0). Its tokens depend only on the genes, the order of their values and the seed: not
on the order of the genes, the scale of the values, other cells or the file.

    canonical     repeats summed, zeros dropped, genes ascending
    bin range     lowest and highest bin of each gene, from ranks alone (see below)
    content key   hash of the seed and of the set of (gene, lowest bin, highest bin)
    bin           uniform in its range, drawn by a hash of (content key, gene)
    sampling      of more than max_length - 1 genes, those whose second hash is smallest
    samples       the same again with other seeds, one sequence of tokens after another, if the seed matters to the cell

**Bins are rank statistics.** Upstream cuts the n values of a cell at 50 edges,
`quantile(x, linspace(0, 1, 50))` with linear interpolation, and gives x a bin in {R + 1, ..., L},
where L = #(edges <= x) and R = #(edges < x), or the bin L where L = R. Edge i lies at the position
p_i = linspace(0, 1, 50)[i] * (n - 1) of the sorted values: on the value there if p_i is whole, else between
the values at floor(p_i) and ceil(p_i). If x occupies the sorted positions lo ... hi - 1,

    edge i <= x   exactly if   ceil(p_i) < hi         so   L = #{i : ceil(p_i) < hi}
    edge i <  x   exactly if   floor(p_i) < lo        so   R = #{i : floor(p_i) < lo}

so no edge is computed, and raw, normalised and log1p values of a cell have the same bins. Upstream computes edges in
floating point, and differs only where an interpolated edge is rounded onto a value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa

from scgpt_ray.schema import BIN, CONTENT, COUNT, GENE, JOINID, N_GENES, obs_columns, one_type, ragged, ragged_array
from scgpt_ray.tokenizer.kernels import GOLDEN, count_cells, tokenize_cells
from scgpt_ray.tokenizer.vocabulary import Vocabulary
from scgpt_ray.tokenizer.workspace import Rules, Scratch, scratch

RULES_VERSION = 1
"""Incremented whenever the same cell, vocabulary and rules give other tokens."""


@dataclass(frozen=True)
class TokenRules:
    """How cells become tokens.

    Args:
        max_length: Maximum number of tokens of a cell, including <cls>, >= 2; genes of longer cells are sampled.
        seed: Seed of ties and sampling.
        ties: Bin of equal values: drawn from the bins that they span, or the top one.
        samples: Number of seeds, >= 1: `seed` and those that follow it in the sequence of splitmix64.
    """

    max_length: int = 1200
    seed: int = 0
    ties: Literal["random", "top"] = "random"
    samples: int = 1

    def __post_init__(self) -> None:
        assert self.max_length > 1, "<cls> and at least one gene"
        assert self.samples > 0, "a cell has tokens"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The rules among other settings, or in `Fingerprint.model`."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def seed_of(self, sample: int) -> int:
        """The seed of a sample, counted from 0; those from `samples` on are of further draws."""
        return (self.seed + sample * int(GOLDEN)) % 2**64


def tokenize(cells: pa.Table, vocabulary: Vocabulary, rules: TokenRules) -> pa.Table:
    """Turn CELLS into TOKENS.

    Args:
        cells: `gene` holds tokens of the vocabulary in any order, possibly repeated (their counts are summed);
            `count` holds finite values >= 0, as the source has checked; zeros are dropped.
        vocabulary: Vocabulary of the checkpoint.
        rules: Length, seed and ties.

    Returns:
        One row per cell: `n_genes`, the number of distinct genes with counts; `content_digest`, the content key, 0
        without counts; and ragged `gene` (<cls>, then ascending) and `bin`, where the sequences of several samples
        follow each other, each from <cls> on. A cell whose tokens do not depend on the seed has one sequence. A cell
        without counts has no tokens, not even <cls>.
    """
    memory = scratch(vocabulary.size)
    seed, is_top = np.uint64(rules.seed), rules.ties == "top"
    kernel_rules = Rules(vocabulary.cls_token, rules.max_length - 1, seed, is_top, rules.samples)
    return _by_chunk(
        cells, lambda chunk: _tokenize(chunk, vocabulary, kernel_rules, memory), vocabulary, BIN, pa.uint8()
    )


def canonical_counts(cells: pa.Table, vocabulary: Vocabulary) -> pa.Table:
    """Turn CELLS into COUNTS: genes ascending, without repeats and zeros.

    Args:
        cells: As for `tokenize`.
        vocabulary: Names of the genes.

    Returns:
        One row per cell: `n_genes`; `content_digest`, a hash of the genes and their counts, 0 without counts; and
        ragged `gene` and `count`.
    """
    memory = scratch(vocabulary.size)
    return _by_chunk(cells, lambda chunk: _count(chunk, vocabulary, memory), vocabulary, COUNT, pa.float32())


def _by_chunk(
    cells: pa.Table,
    make: Callable[[pa.RecordBatch], list[pa.Array]],
    vocabulary: Vocabulary,
    values: str,
    dtype: pa.DataType,
) -> pa.Table:
    """CELLS with what is made of their genes and counts, chunk by chunk: combining chunks would copy all of both."""
    gene = pa.from_numpy_dtype(vocabulary.gene_dtype)
    schema = pa.schema(
        [(N_GENES, pa.int32()), (CONTENT, pa.uint64()), (GENE, pa.list_(gene)), (values, pa.list_(dtype))]
    )
    chunks = [pa.record_batch(make(chunk), schema=schema) for chunk in cells.select([GENE, COUNT]).to_batches()]
    made = pa.Table.from_batches(chunks, schema=schema)
    table = cells.select([JOINID, *obs_columns(cells)])
    for name in made.column_names:
        table = table.append_column(name, made[name])
    return table


def _taken_apart(cells: pa.RecordBatch, vocabulary: Vocabulary) -> tuple[Any, Any, Any]:
    """Boundaries, genes and counts, of the types for which the kernels are compiled."""
    offsets, gene = ragged(cells[GENE])
    count_offsets, count = ragged(cells[COUNT])
    assert np.array_equal(offsets, count_offsets), "one count per gene"
    gene = gene.astype(np.int32, copy=False)
    # As uint32, negative tokens are the largest: one comparison checks both bounds.
    assert gene.view(np.uint32).max(initial=0) < vocabulary.size, "genes are tokens"
    return one_type(offsets, np.int64), one_type(gene, np.int32), one_type(count, np.float32)


def _count(cells: pa.RecordBatch, vocabulary: Vocabulary, memory: Scratch) -> list[pa.Array]:
    offsets, gene, count = _taken_apart(cells, vocabulary)
    kept_gene, kept_count = np.empty(len(gene), np.int32), np.empty(len(gene), np.float32)
    kept_offsets, keys = count_cells(offsets, gene, count, memory, kept_gene, kept_count)
    used = slice(0, kept_offsets[-1])
    return [
        pa.array(np.diff(kept_offsets).astype(np.int32)),
        pa.array(keys),
        ragged_array(kept_offsets, kept_gene[used].astype(vocabulary.gene_dtype, copy=False)),
        ragged_array(kept_offsets, kept_count[used]),
    ]


def _tokenize(cells: pa.RecordBatch, vocabulary: Vocabulary, rules: Rules, memory: Scratch) -> list[pa.Array]:
    offsets, gene, count = _taken_apart(cells, vocabulary)
    n_tokens = rules.samples * (np.minimum(np.diff(offsets), rules.most_genes) + 1).sum()
    token_gene, token_bin = np.empty(n_tokens, np.int32), np.empty(n_tokens, np.uint8)
    token_offsets, n_genes, keys = tokenize_cells(offsets, gene, count, memory, rules, token_gene, token_bin)
    used = slice(0, token_offsets[-1])
    return [
        pa.array(n_genes),
        pa.array(keys),
        ragged_array(token_offsets, token_gene[used].astype(vocabulary.gene_dtype, copy=False)),
        ragged_array(token_offsets, token_bin[used]),
    ]
