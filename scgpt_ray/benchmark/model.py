"""The stage `model`: cells/s of the network, from TOKENS in Arrow to EMBEDDINGS in Arrow."""

import importlib.util
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from scgpt_ray.benchmark.launches import seconds_per_launch
from scgpt_ray.benchmark.measurement import SECONDS, Figure, Setting, median_seconds, peak_bytes, seconds_of
from scgpt_ray.benchmark.padded_reference import NaiveNetwork, naive_tokens, padding_waste, same_tokens
from scgpt_ray.benchmark.synthetic import (
    RAGGED,
    WHOLE_HUMAN_TOKENS,
    cell_lengths,
    lengths_of_file,
    synthetic_cells,
    synthetic_tokens,
    synthetic_vocabulary,
)
from scgpt_ray.network.checkpoint import Architecture, Checkpoint, random_tensors, read_checkpoint
from scgpt_ray.network.embedder import Embedder, set_threads
from scgpt_ray.network.precision import DTYPES, resolve_precision
from scgpt_ray.schema import N_GENES, Int64Array

if TYPE_CHECKING:
    from scgpt_ray.config import BenchmarkSettings  # needs pydantic, which a bare GPU machine lacks

WHOLE_HUMAN = Architecture(512, 8, 512, 12, -2, WHOLE_HUMAN_TOKENS)
"""The size of the published checkpoints."""

CPU_CELLS, CUDA_CELLS = 64, 4096
_MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
TERA = 1e12


def measure(settings: "BenchmarkSettings", architecture: Architecture = WHOLE_HUMAN) -> list[Figure]:
    """Measure the network, and the padded reference if asked for.

    Args:
        settings: What to measure.
        architecture: Architecture of random weights, without a checkpoint.
    """
    if settings.threads:
        set_threads(settings.threads)
    checkpoint = read_checkpoint(settings.checkpoint) if settings.checkpoint else random_checkpoint_of(architecture)
    seconds, tokens, device = settings.seconds or SECONDS, settings.tokens or RAGGED, torch.device(settings.device)
    n_cells = settings.cells or (CUDA_CELLS if device.type == "cuda" else CPU_CELLS)
    lengths = (
        lengths_of_file(Path(settings.lengths_from), n_cells)
        if settings.lengths_from
        else cell_lengths(tokens, n_cells)
    )
    table = synthetic_tokens(lengths, checkpoint.vocabulary.size, checkpoint.vocabulary.cls_token)
    embedder = Embedder(checkpoint, device=settings.device, precision=settings.precision, attention=settings.attention)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = median_seconds(lambda: embedder(table), seconds)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes()
    setting: Setting = {
        **embedder.describe(),
        "cells": len(lengths),
        "tokens": settings.lengths_from or tokens,
        "mean_tokens": round(float(lengths.mean())),
        "threads": torch.get_num_threads(),
    }
    rate = nominal_flops(lengths, checkpoint.architecture) / took / TERA
    dtype = DTYPES[resolve_precision(settings.precision, settings.device)]
    ceiling = matmul_rate(device, dtype, _MATMUL_SIZE[device.type], seconds / 4) / TERA
    values = [
        ("cells", len(lengths) / took, "cells/s"),
        ("tokens", lengths.sum() / took, "tokens/s"),
        ("nominal rate", rate, "TFLOP/s"),
        ("matmul rate", ceiling, "TFLOP/s"),
        ("MFU", rate / ceiling, ""),
        ("padding waste, were cells padded to the longest of 64", padding_waste(lengths), ""),
        ("peak memory", peak / 2**30, "GiB"),
    ]
    if settings.against:
        values += against_naive(checkpoint, table, took, device)
    return [Figure("model", name, float(value), unit, setting) for name, value, unit in values]


def random_checkpoint_of(architecture: Architecture) -> Checkpoint:
    """A checkpoint of random weights, in memory."""
    vocabulary = synthetic_vocabulary(architecture.n_tokens)
    return Checkpoint("random weights", architecture, vocabulary, random_tensors(architecture, seed=0), "")


def nominal_flops(lengths: Int64Array, architecture: Architecture) -> float:
    """FLOPs of all layers without algebraic savings, for real tokens only.

    Per token and layer: 2 (4 d^2 + 2 d F) FLOPs in linear layers, and 4 d L in attention among L tokens.
    """
    d, hidden = architecture.embsize, architecture.d_hid
    tokens = lengths.astype(np.float64)
    per_token = 2 * (4 * d * d + 2 * d * hidden) + 4 * d * tokens
    return float(architecture.nlayers * (tokens * per_token).sum())


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int, seconds: float) -> float:
    """FLOP/s of a product of two n x n matrices, the peak that MFU refers to."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds_per_launch(lambda: torch.mm(a, b), device, seconds)


def against_naive(
    checkpoint: Checkpoint, tokens: pa.Table, seconds: float, device: torch.device
) -> list[tuple[str, float, str]]:
    """Run the padded reference once over the same cells, and compare.

    Args:
        checkpoint: Checkpoint of both networks.
        tokens: TOKENS for both networks.
        seconds: Time of our network.
        device: Where they compute.

    Returns:
        Names, values and units of the figures: for the networks alone and, if numba is installed, for tokens and
        network together.
    """
    padded = same_tokens(tokens, checkpoint.architecture.pad_value)
    found, naive_s = [], math.inf
    for nested in (True, False) if device.type == "cpu" else (False,):
        network = NaiveNetwork(checkpoint.architecture, checkpoint.tensors, device, nested=nested)
        network(padded[:2])  # the first call allocates
        naive_s = seconds_of(partial(network, padded))
        name = ", nested tensors" if nested else ""
        found.append((f"naive network{name}", len(padded) / naive_s, "cells/s"))
        found.append((f"ratio of the networks{name}", naive_s / seconds, ""))
    if importlib.util.find_spec("numba") is None:
        return found
    from scgpt_ray.tokenizer.rules import TokenRules, tokenize

    vocabulary, rules = checkpoint.vocabulary, TokenRules()
    cells = synthetic_cells(tokens[N_GENES].to_numpy().astype(np.int64), vocabulary.size)
    rng = np.random.default_rng(0)
    pad_value = checkpoint.architecture.pad_value
    naive_s += seconds_of(lambda: naive_tokens(cells, vocabulary.cls_token, pad_value, rules.max_length, rng))
    seconds += median_seconds(lambda: tokenize(cells, vocabulary, rules), 0)
    return [
        *found,
        ("tokens and network", len(padded) / seconds, "cells/s"),
        ("naive tokens and network", len(padded) / naive_s, "cells/s"),
        ("ratio of tokens and network", naive_s / seconds, ""),
    ]
