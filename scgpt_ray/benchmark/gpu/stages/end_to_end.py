"""From Arrow to Arrow, by two threads at a time as Ray lets an actor work, against cells padded in plain torch."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.subjects import tokens_of
from scgpt_ray.benchmark.measurement import seconds_of
from scgpt_ray.benchmark.model import TERA, nominal_flops
from scgpt_ray.benchmark.padded_reference import NaiveNetwork, same_tokens
from scgpt_ray.benchmark.synthetic import cell_lengths
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.schema import Int64Array

CALLS = 2
"""Calls of an actor at a time."""


def run(bench: Bench) -> None:
    """Measure our way, the padded way, and their ratio."""
    embedder = Embedder(bench.checkpoint, device=str(bench.device), precision=bench.sizes.precision)
    padded = NaiveNetwork(bench.sizes.architecture, bench.checkpoint.tensors, bench.device)
    for tokens in bench.sizes.lengths:
        with bench.report.attempt("both", tokens):
            lengths = cell_lengths(tokens, bench.sizes.cells)
            partition = tokens_of(bench.checkpoint, lengths)
            rate = _ours(bench, embedder, partition, lengths, tokens)
            naive_rate = _padded(bench, padded, partition, tokens)
            bench.report.figure("ratio", rate / naive_rate, "", tokens)


def _ours(bench: Bench, embedder: Embedder, partition: pa.Table, lengths: Int64Array, tokens: str) -> float:
    """Report cells/s of an actor's loop, and return them."""
    drive(embedder, [partition.slice(0, len(partition) // 4)])
    partitions = [partition] * bench.sizes.partitions
    seconds = drive(embedder, partitions) / len(partitions)
    setting = embedder.describe()
    bench.report.figure("embedder, two threads", len(lengths) / seconds, "cells/s", tokens, **setting)
    flops = nominal_flops(lengths, bench.sizes.architecture) / seconds
    bench.report.figure("nominal rate", flops / TERA, "TFLOP/s", tokens)
    bench.report.figure("MFU", flops / bench.ceiling, "", tokens)
    return len(lengths) / seconds


def drive(embedder: Embedder, partitions: Sequence[pa.Table]) -> float:
    """Embed partitions as an actor does: CALLS at a time, each from Arrow to Arrow; returns the seconds."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CALLS) as threads:
        for embeddings in threads.map(embedder, partitions):
            assert embeddings.num_rows
    return time.perf_counter() - began


def _padded(bench: Bench, network: NaiveNetwork, partition: pa.Table, tokens: str) -> float:
    """Report cells/s of the padded path, and return them."""
    cells = same_tokens(partition.slice(0, bench.sizes.padded), bench.sizes.architecture.pad_value)
    network(cells[: len(cells) // 4])
    rate = len(cells) / float(np.median([seconds_of(lambda: network(cells)) for _ in range(3)]))
    bench.report.figure("padded", rate, "cells/s", tokens, cells=len(cells))
    return rate
