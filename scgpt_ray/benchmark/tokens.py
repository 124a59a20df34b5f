"""The stage `tokens`: cells/s from CELLS to TOKENS on one core, for counts and for log1p values."""

from functools import partial

import numpy as np

from scgpt_ray.benchmark.measurement import Figure, median_seconds, seconds_of
from scgpt_ray.benchmark.padded_reference import naive_tokens
from scgpt_ray.benchmark.synthetic import WHOLE_HUMAN_TOKENS, cell_lengths, synthetic_cells
from scgpt_ray.tokenizer.rules import TokenRules, tokenize
from scgpt_ray.tokenizer.vocabulary import SPECIALS, Vocabulary

CELLS = 4096
GENES = "2000"
"""Default number of genes per cell: more than 1,200, so that genes are sampled."""


def benchmark_tokens(tokens: str | None, n_cells: int | None, seconds: float, against_naive: bool) -> list[Figure]:
    """Measure the tokeniser.

    Args:
        tokens: Tokens per cell before sampling: a number or `ragged`; None for 2,000.
        n_cells: Number of cells of one run.
        seconds: Time for the runs of one figure.
        against_naive: Whether to measure the padded reference as well.
    """
    vocabulary = Vocabulary({f"GENE{n}": n for n in range(WHOLE_HUMAN_TOKENS - len(SPECIALS))})
    rules = TokenRules()
    n_genes = cell_lengths(tokens or GENES, n_cells or CELLS) - 1
    figures = []
    for kind in ("counts", "log1p"):
        cells = synthetic_cells(n_genes, vocabulary.size, log1p=kind == "log1p")
        ours_s = median_seconds(partial(tokenize, cells, vocabulary, rules), seconds)
        setting: dict[str, str | int | float] = {
            "values": kind,
            "cells": len(cells),
            "mean_genes": round(float(n_genes.mean())),
            "threads": 1,
        }
        figures.append(Figure("tokens", "tokens", len(cells) / ours_s, "cells/s", setting))
        if against_naive:
            rng = np.random.default_rng(0)
            naive_s = seconds_of(partial(naive_tokens, cells, vocabulary.cls_token, -2.0, rules.max_length, rng))
            figures.append(Figure("tokens", "naive tokens", len(cells) / naive_s, "cells/s", setting))
            figures.append(Figure("tokens", "ratio to naive", naive_s / ours_s, "", setting))
    return figures
