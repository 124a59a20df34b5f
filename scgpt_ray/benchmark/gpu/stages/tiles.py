"""Attention by tile: all compiled at once beforehand, each checked, those that are right measured, the best printed.

A tile is compiled and checked in a process for itself, so that many compile at once and one that the compiler cannot
take costs nothing else: `python -m scgpt_ray.benchmark.gpu.stages.tiles 128 64 4 3 cuda`.
"""

import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.report import short
from scgpt_ray.benchmark.gpu.sizes import FULL, SMALL
from scgpt_ray.benchmark.gpu.stages.attention import HEAD_WIDTH, LIMITS, attention_error
from scgpt_ray.benchmark.gpu.subjects import (
    TileShape,
    attend_by,
    attend_in_tiles,
    boundaries,
    constant_of,
    usual_tile,
)
from scgpt_ray.benchmark.launches import seconds_per_launch
from scgpt_ray.benchmark.model import TERA
from scgpt_ray.network.attention import Attend
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.precision import DTYPES

COMPILE_SECONDS = 50
"""Time limit of one tile's process."""


def run(bench: Bench) -> None:
    """Compile, check, measure, choose."""
    seconds: dict[TileShape, list[float]] = {}
    for tile in compile_all(bench):
        with bench.report.attempt(_name(tile)):
            attend = attend_in_tiles(tile)
            seconds[tile] = [_measure(bench, _name(tile), tokens, attend) for tokens in bench.sizes.lengths]
    for way in bench.sizes.ways[1:]:
        with bench.report.attempt(way):
            for tokens in bench.sizes.lengths:
                _measure(bench, way, tokens, attend_by(way, bench.device, bench.dtype, HEAD_WIDTH))
    if seconds:
        bench.report.figure("to commit", constant_of(best(seconds)))
        bench.report.figure("as it is", constant_of(usual_tile()))


def compile_all(bench: Bench) -> list[TileShape]:
    """Compile the tiles, a process each on every core; returns those whose results are right."""
    with ThreadPoolExecutor(os.cpu_count()) as cores:
        answers = list(cores.map(lambda tile: _compile(tile, bench.device), bench.sizes.tiles))
    right = []
    for tile, answer in zip(bench.sizes.tiles, answers, strict=True):
        name = f"{_name(tile)}, relative error"
        if isinstance(answer, str):
            bench.report.failure(name, answer)
            continue
        bench.report.check(name, answer["error"], LIMITS[bench.dtype], seconds=answer["seconds"])
        if answer["error"] <= LIMITS[bench.dtype]:
            right.append(tile)
    return right


def _compile(tile: TileShape, device: torch.device) -> dict[str, float] | str:
    """What the process of a tile found, or why there is nothing."""
    program = [sys.executable, "-m", __name__, *map(str, tile), device.type]
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"not compiled within {COMPILE_SECONDS} s"
    if done.returncode:
        return short(f"exit code {done.returncode}: {done.stderr.strip().rpartition(chr(10))[2]}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _measure(bench: Bench, name: str, tokens: str, attend: Attend) -> float:
    """Report the rate of a way to attend; returns its seconds."""
    offsets = boundaries(tokens, bench.sizes.tokens)
    heads = bench.sizes.architecture.nheads
    qkv = torch.randn(int(offsets[-1]), 3, heads, HEAD_WIDTH, device=bench.device)
    qkv[:, 0] /= HEAD_WIDTH**0.5
    q_TNH, k_TNH, v_TNH = qkv.to(bench.dtype).unbind(1)
    cells = Spans.of(offsets, bench.device)
    seconds = seconds_per_launch(lambda: attend(q_TNH, k_TNH, v_TNH, cells, cells), bench.device, bench.sizes.seconds)
    operations = 4 * heads * HEAD_WIDTH * float((np.diff(offsets).astype(float) ** 2).sum())
    bench.report.figure(name, operations / seconds / TERA, "TFLOP/s", tokens, precision=bench.sizes.precision)
    return seconds


def best(seconds: dict[TileShape, list[float]]) -> TileShape:
    """The tile that is nearest to the fastest of each length, on geometric average."""
    fastest = [min(column) for column in zip(*seconds.values(), strict=True)]
    return min(
        seconds, key=lambda tile: math.prod(own / least for own, least in zip(seconds[tile], fastest, strict=True))
    )


def _name(tile: TileShape) -> str:
    queries, keys, warps, stages = tile
    return f"{queries} x {keys}, {warps} warps, {stages} stages"


def main(arguments: list[str]) -> None:
    """Print the relative error of a tile, and the seconds that the first launch took."""
    *tile, device = arguments
    sizes = SMALL if device == "cpu" else FULL
    queries, keys, warps, stages = map(int, tile)
    attend = attend_in_tiles((queries, keys, warps, stages))
    began = time.perf_counter()
    heads, dtype = sizes.architecture.nheads, DTYPES[sizes.precision]
    error = attention_error(attend, sizes.edges, heads, dtype, torch.device(device))
    sys.stdout.write(json.dumps({"error": error, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(sys.argv[1:])
