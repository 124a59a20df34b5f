"""The stage `tokens`: cells/s from CELLS to TOKENS on one core, for counts and for log1p values."""

from functools import partial

import numpy as np

from scgpt_ray.benchmark.measurement import SECONDS, Figure, Setting, median_seconds, seconds_of
from scgpt_ray.benchmark.padded_reference import naive_tokens
from scgpt_ray.benchmark.synthetic import cell_lengths, synthetic_cells, synthetic_vocabulary
from scgpt_ray.config import BenchmarkSettings
from scgpt_ray.tokenizer.rules import TokenRules, tokenize

CELLS = 4096
GENES = "2000"
"""Default number of genes per cell: more than 1,200, so that genes are sampled."""


def measure(settings: BenchmarkSettings) -> list[Figure]:
    """Measure the tokeniser, and the padded reference if asked for."""
    vocabulary, rules = synthetic_vocabulary(), TokenRules()
    n_genes = cell_lengths(settings.tokens or GENES, settings.cells or CELLS) - 1
    figures = []
    for kind in ("counts", "log1p"):
        cells = synthetic_cells(n_genes, vocabulary.size, log1p=kind == "log1p")
        ours_s = median_seconds(partial(tokenize, cells, vocabulary, rules), settings.seconds or SECONDS)
        setting: Setting = {
            "values": kind,
            "cells": len(cells),
            "mean_genes": round(float(n_genes.mean())),
            "threads": 1,
        }
        figures.append(Figure("tokens", "tokens", len(cells) / ours_s, "cells/s", setting))
        if settings.against:
            rng = np.random.default_rng(0)
            naive_s = seconds_of(partial(naive_tokens, cells, vocabulary.cls_token, -2.0, rules.max_length, rng))
            figures.append(Figure("tokens", "naive tokens", len(cells) / naive_s, "cells/s", setting))
            figures.append(Figure("tokens", "ratio to naive", naive_s / ours_s, "", setting))
    return figures
