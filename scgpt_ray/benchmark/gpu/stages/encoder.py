"""The whole network on one microbatch, one saving after the other, each with its error against float32."""

from functools import partial

import numpy as np
import torch

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.sizes import LIMITS
from scgpt_ray.benchmark.gpu.subjects import (
    VARIANTS,
    Microbatch,
    Variant,
    boundaries,
    cosine_error,
    encoder,
    first_cells,
    microbatch,
)
from scgpt_ray.benchmark.launches import seconds_per_launch
from scgpt_ray.benchmark.model import nominal_flops
from scgpt_ray.network.encoder import Encoder

_CELLS = 4


def run(bench: Bench) -> None:
    """Measure and check all variants."""
    exact = encoder(bench.checkpoint, bench.device, "float32")
    for variant in VARIANTS:
        with bench.report.attempt(variant.name):
            _measure(bench, variant, exact)


def _measure(bench: Bench, variant: Variant, exact: Encoder) -> None:
    """Figures of one variant for all lengths."""
    network = variant.build(bench.checkpoint, bench.device, bench.dtype)
    letter = variant.name[0]
    bench.report.figure(f"{letter}, attention", network.attention.name)
    bench.report.figure(f"{letter}, element-wise", network.elementwise.name)
    for tokens in bench.sizes.lengths:
        offsets = boundaries(tokens, bench.sizes.tokens)
        cells = microbatch(bench.checkpoint, offsets, bench.device)
        few = first_cells(cells, _CELLS)
        error = cosine_error(network(*few), exact(*few))
        seconds = seconds_per_launch(partial(network, *cells), bench.device, bench.sizes.seconds)
        lengths = np.diff(offsets)
        rate = nominal_flops(lengths, bench.sizes.architecture) / seconds
        bench.report.figure(variant.name, len(lengths) / seconds, "cells/s", tokens)
        bench.report.figure(f"{letter}, MFU", rate / bench.ceiling, "", tokens)
        if bench.device.type == "cuda":
            held, budgeted = _held(network, cells), network.bytes_per_token
            bench.report.figure(f"{letter}, activations", held, "bytes a token", tokens, budgeted=budgeted)
        bench.report.check(f"{letter}, 1 - cosine to float32", error, LIMITS[bench.sizes.precision], tokens)


def _held(network: Encoder, cells: Microbatch) -> float:
    """Most memory that a microbatch takes on a GPU, for each of its tokens."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    network(*cells)
    return (torch.cuda.max_memory_allocated() - before) / len(cells[0])
