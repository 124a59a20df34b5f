"""From counts to tokens: which genes a cell shows the model, and in which bin each one is.

A cell is a set of (gene, value > 0). Its tokens depend on the genes, the order of their values and the seed,
and on nothing else: not the order of the genes, the scale of the values, the neighbours or the file.

    canonical     repeats summed, zeros dropped, genes ascending
    bin range     lowest and highest bin of each gene, from ranks alone (see `bins`)
    content key   hash of the seed and of the set of (gene, lowest bin, highest bin)
    bin           uniform in its range, drawn by a hash of (content key, gene)
    sampling      of more than max_length - 1 genes, those whose second hash is smallest
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from scgpt_ray.model.bins import tokenize_cells
from scgpt_ray.model.scratch import Rules, scratch
from scgpt_ray.model.vocabulary import Vocabulary
from scgpt_ray.schema import BIN, COUNT, GENE, JOINID, N_GENES, obs_columns, ragged, ragged_array

RULES_VERSION = 1
"""Raised whenever the same cell, vocabulary and rules give other tokens."""


@dataclass(frozen=True)
class TokenRules:
    """How the cells of a run become tokens.

    Args:
        max_length: Most tokens of a cell, <cls> included, >= 2; longer cells are sampled.
        seed: Seed of ties and sampling.
        ties: Which bin equal values get: a draw from the bins they span, or the top one.
    """

    max_length: int = 1200
    seed: int = 0
    ties: Literal["random", "top"] = "random"

    def __post_init__(self) -> None:
        assert self.max_length > 1, "<cls> and at least one gene"


def tokenize(cells: pa.Table, vocabulary: Vocabulary, rules: TokenRules) -> pa.Table:
    """Turn CELLS into TOKENS.

    Args:
        cells: `gene` holds tokens of the vocabulary in any order, also repeatedly (their counts are summed);
            `count` holds finite values >= 0, which the reader of the cells vouches for; zeros are dropped.
        vocabulary: Of the checkpoint the tokens are for.
        rules: Length, seed and ties.

    Returns:
        One row per cell with `n_genes`, its distinct genes with a count, and ragged `gene` (ascending after
        <cls>) and `bin`. A cell without counts has no tokens, not even <cls>.
    """
    offsets, gene = ragged(cells[GENE])
    count_offsets, count = ragged(cells[COUNT])
    assert np.array_equal(offsets, count_offsets), "one count per gene"
    assert gene.size == 0 or (gene.min() >= 0 and gene.max() < vocabulary.size), "genes are tokens"
    lengths = np.minimum(np.diff(offsets), rules.max_length - 1) + 1
    token_gene = np.empty(lengths.sum(), vocabulary.gene_dtype)
    token_bin = np.empty(lengths.sum(), np.uint8)
    token_offsets, n_genes = tokenize_cells(
        offsets,
        gene.astype(np.int32, copy=False),
        count.astype(np.float32, copy=False),
        scratch(vocabulary.size),
        Rules(vocabulary.cls_token, rules.max_length - 1, np.uint64(rules.seed), rules.ties == "top"),
        token_gene,
        token_bin,
    )
    n_tokens = token_offsets[-1]
    tokens = cells.select([JOINID, *obs_columns(cells)])
    tokens = tokens.append_column(N_GENES, pa.array(n_genes))
    tokens = tokens.append_column(GENE, ragged_array(token_offsets, token_gene[:n_tokens]))
    return tokens.append_column(BIN, ragged_array(token_offsets, token_bin[:n_tokens]))
