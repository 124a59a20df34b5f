"""The stage `model`: cells/s of the network, from TOKENS in Arrow to EMBEDDINGS in Arrow.

Also a program for a bare GPU machine that has only torch, numpy and pyarrow:
`python -m scgpt_ray.benchmark.model --device cuda --precision float16 --tokens 1200`.
"""

import argparse
import importlib.util
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import torch

from scgpt_ray.benchmark.measurement import Figure, median_seconds, peak_bytes, seconds_of, table
from scgpt_ray.benchmark.padded_reference import NaiveNetwork, naive_tokens, padding_waste, same_tokens
from scgpt_ray.benchmark.synthetic import (
    RAGGED,
    WHOLE_HUMAN_TOKENS,
    cell_lengths,
    lengths_of_file,
    synthetic_cells,
    synthetic_tokens,
)
from scgpt_ray.network.attention import Kind
from scgpt_ray.network.checkpoint import Architecture, Checkpoint, random_tensors, read_checkpoint
from scgpt_ray.network.embedder import Embedder, set_threads
from scgpt_ray.network.precision import DTYPES, resolve_precision
from scgpt_ray.schema import N_GENES, Int64Array
from scgpt_ray.tokenizer.vocabulary import SPECIALS, Vocabulary

WHOLE_HUMAN = Architecture(512, 8, 512, 12, -2, WHOLE_HUMAN_TOKENS)
"""The size of the published checkpoints."""

CPU_CELLS, CUDA_CELLS = 64, 4096
_MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
_TERA = 1e12


@dataclass(frozen=True)
class ModelRequest:
    """What to measure.

    Args:
        device: cpu or cuda.
        precision: Precision of the network.
        tokens: Tokens per cell, including <cls>: a number or `ragged`.
        cells: Number of cells of one run; None for the default of the device.
        lengths_from: An .h5ad file whose cell lengths are used instead of `tokens`.
        checkpoint: Checkpoint folder; None for random weights of the size of whole-human.
        against: `naive` to measure the padded reference as well.
        threads: CPU threads; None for torch's default.
        seconds: Time for the runs of one figure.
        attention: Implementation of attention.
    """

    device: str = "cpu"
    precision: str = "auto"
    tokens: str = RAGGED
    cells: int | None = None
    lengths_from: str | None = None
    checkpoint: str | None = None
    against: str | None = None
    threads: int | None = None
    seconds: float = 10.0
    attention: Kind = "auto"


def benchmark_model(request: ModelRequest, architecture: Architecture = WHOLE_HUMAN) -> list[Figure]:
    """Measure the network.

    Args:
        request: What to measure.
        architecture: Architecture of random weights.
    """
    if request.threads:
        set_threads(request.threads)
    checkpoint = read_checkpoint(request.checkpoint) if request.checkpoint else random_checkpoint_of(architecture)
    lengths = lengths_of(request)
    vocabulary = checkpoint.vocabulary
    tokens = synthetic_tokens(lengths, vocabulary.size, vocabulary.cls_token)
    embedder = Embedder(checkpoint, device=request.device, precision=request.precision, attention=request.attention)
    on_cuda = torch.device(request.device).type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(lambda: embedder(tokens), request.seconds)
    peak = torch.cuda.max_memory_allocated() if on_cuda else peak_bytes()
    setting: dict[str, str | int | float] = {
        **embedder.describe(),
        "cells": len(lengths),
        "tokens": request.lengths_from or request.tokens,
        "mean_tokens": round(float(lengths.mean())),
        "threads": torch.get_num_threads(),
    }
    rate = nominal_flops(lengths, checkpoint.architecture) / seconds / _TERA
    ceiling = (
        matmul_rate(
            torch.device(request.device),
            DTYPES[resolve_precision(request.precision, request.device)],
            request.seconds / 4,
        )
        / _TERA
    )
    values = [
        ("cells", len(lengths) / seconds, "cells/s"),
        ("tokens", lengths.sum() / seconds, "tokens/s"),
        ("nominal rate", rate, "TFLOP/s"),
        ("matmul rate", ceiling, "TFLOP/s"),
        ("MFU", rate / ceiling, ""),
        ("padding waste, were cells padded to the longest of 64", padding_waste(lengths), ""),
        ("peak memory", peak / 2**30, "GiB"),
    ]
    if request.against == "naive":
        values += against_naive(checkpoint, tokens, seconds, request)
    return [Figure("model", name, float(value), unit, setting) for name, value, unit in values]


def lengths_of(request: ModelRequest) -> Int64Array:
    """Number of tokens of each cell."""
    n_cells = request.cells or (CPU_CELLS if torch.device(request.device).type == "cpu" else CUDA_CELLS)
    if request.lengths_from:
        return lengths_of_file(Path(request.lengths_from), n_cells)
    return cell_lengths(request.tokens, n_cells)


def random_checkpoint_of(architecture: Architecture) -> Checkpoint:
    """A checkpoint of random weights, in memory."""
    n_genes = architecture.n_tokens - len(SPECIALS)
    vocabulary = Vocabulary({f"GENE{number}": number for number in range(n_genes)})
    return Checkpoint("random weights", architecture, vocabulary, random_tensors(architecture, seed=0), "")


def nominal_flops(lengths: Int64Array, architecture: Architecture) -> float:
    """FLOPs of all layers without algebraic savings, for real tokens only.

    Per token and layer: 2 (4 d^2 + 2 d F) FLOPs in linear layers, and 4 d L in attention among L tokens.
    """
    d, hidden = architecture.embsize, architecture.d_hid
    tokens = lengths.astype(np.float64)
    per_token = 2 * (4 * d * d + 2 * d * hidden) + 4 * d * tokens
    return float(architecture.nlayers * (tokens * per_token).sum())


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a large square matrix product, the peak that MFU refers to."""
    n = _MATMUL_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return 2 * n**3 / median_seconds(multiply, seconds)


def against_naive(
    checkpoint: Checkpoint, tokens: pa.Table, seconds: float, request: ModelRequest
) -> list[tuple[str, float, str]]:
    """Run the padded reference once over the same cells, and compare.

    Args:
        checkpoint: Checkpoint of both networks.
        tokens: TOKENS for both networks.
        seconds: Time of our network.
        request: What to measure.

    Returns:
        Names, values and units of the figures: for the networks alone and, if numba is installed, for tokens and
        network together.
    """
    device = torch.device(request.device)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: a table goes to stderr, one line of JSON per figure to stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m scgpt_ray.benchmark.model", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--tokens", default=RAGGED, help="per cell: a number, or ragged")
    parser.add_argument("--cells", type=int)
    parser.add_argument("--lengths-from", metavar="FILE.h5ad", help="needs all of scgpt_ray installed")
    parser.add_argument("--checkpoint", metavar="FOLDER")
    parser.add_argument("--against", choices=["naive"], help="compare with the padded reference")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--attention", default="auto", choices=get_args(Kind))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    figures = benchmark_model(ModelRequest(**vars(parser.parse_args(arguments))))
    sys.stderr.write(table(figures) + "\n")
    sys.stdout.write("".join(f"{figure.to_json()}\n" for figure in figures))


if __name__ == "__main__":
    main()
