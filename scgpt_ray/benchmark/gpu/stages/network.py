"""All layers in each precision against float32, and float32 against the CPU."""

import numpy as np
import torch

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.sizes import LIMITS
from scgpt_ray.benchmark.gpu.subjects import boundaries, cosine_error, encoder, first_cells, microbatch

_CELLS = 4
_SHORT = 300
"""Tokens of the cells that the CPU computes, too."""


def run(bench: Bench) -> None:
    """Check the network with random weights."""
    exact = encoder(bench.checkpoint, bench.device, "float32")
    for precision in bench.sizes.precisions:
        with bench.report.attempt(precision):
            network = encoder(bench.checkpoint, bench.device, precision)
            for tokens in bench.sizes.lengths:
                offsets = boundaries(tokens, bench.sizes.tokens)
                cells = first_cells(microbatch(bench.checkpoint, offsets, bench.device), _CELLS)
                error = cosine_error(network(*cells), exact(*cells))
                bench.report.check(
                    f"{precision}, 1 - cosine to float32", error, LIMITS[precision], tokens,
                    attention=network.attention.name,
                )  # fmt: skip
    cpu = torch.device("cpu")
    cells = microbatch(bench.checkpoint, np.arange(3) * _SHORT, cpu)
    error = cosine_error(exact(*cells).cpu(), encoder(bench.checkpoint, cpu, "float32")(*cells))
    bench.report.check("float32, 1 - cosine to the CPU", error, LIMITS["float32"])
