"""Compiles the attention kernel for one tile and checks it: `python -m scgpt_ray.benchmark.gpu.tile 128 64 4 3 cuda`.

In a process for itself, so that many compile at once and one that the compiler cannot take costs nothing else.
"""

import json
import sys
import time

import torch

from scgpt_ray.benchmark.gpu.sizes import FULL, SMALL
from scgpt_ray.benchmark.gpu.stages.attention import attention_error
from scgpt_ray.benchmark.gpu.subjects import attend_in_tiles
from scgpt_ray.network.precision import DTYPES


def main(arguments: list[str]) -> None:
    """Print the relative error, and the seconds that the first launch took."""
    queries, keys, warps, stages, device = arguments
    sizes = SMALL if device == "cpu" else FULL
    attend = attend_in_tiles((int(queries), int(keys), int(warps), int(stages)))
    began = time.perf_counter()
    heads, dtype = sizes.architecture.nheads, DTYPES[sizes.precision]
    error = attention_error(attend, sizes.edges, heads, dtype, torch.device(device))
    sys.stdout.write(json.dumps({"error": error, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(sys.argv[1:])
