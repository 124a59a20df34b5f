"""How large everything is: on a GPU, and for the twin on a CPU."""

from dataclasses import dataclass

from scgpt_ray.benchmark.model import WHOLE_HUMAN
from scgpt_ray.benchmark.synthetic import RAGGED
from scgpt_ray.network.checkpoint import Architecture

LIMITS = {"float32": 1e-6, "float16": 1e-5, "bfloat16": 1e-3}
"""Largest 1 - cosine of an embedding to that in float32."""


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked.

    Attributes:
        precisions: Of the network; the first is the one that is measured.
        architecture: Of random weights.
        lengths: Tokens of the cells of each measurement.
        edges: Tokens of the cells that attention is checked on: around the edges of its tiles.
        tokens: Of a microbatch.
        ways: Names of the ways to attend.
        tiles: Queries, keys, warps and stages of the tiles to sweep.
        matrix: Rows and columns of the product that gives the ceiling.
        copied: Bytes of the copy that gives the other ceiling.
        seconds: For the launches of one figure.
        cells: Of a partition, end to end.
        partitions: End to end.
        padded: Cells for the padded path.
    """

    precisions: tuple[str, ...]
    architecture: Architecture
    lengths: tuple[str, ...]
    edges: tuple[int, ...]
    tokens: int
    ways: tuple[str, ...]
    tiles: tuple[tuple[int, int, int, int], ...]
    matrix: int
    copied: int
    seconds: float
    cells: int
    partitions: int
    padded: int

    @property
    def precision(self) -> str:
        """The one that is measured."""
        return self.precisions[0]


FULL = Sizes(
    precisions=("float16", "bfloat16"),
    architecture=WHOLE_HUMAN,
    lengths=("1200", "600", RAGGED),
    edges=(1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 192, 193, 600, 1199, 1200),
    tokens=65_536,
    ways=("triton", "varlen"),
    tiles=tuple(
        (queries, keys, warps, stages)
        for queries, keys in ((64, 64), (64, 128), (128, 64), (128, 128))
        for warps in (4, 8)
        for stages in (2, 3, 4)
    ),
    matrix=8192,
    copied=2**32,
    seconds=0.15,
    cells=8192,
    partitions=5,
    padded=512,
)

SMALL = Sizes(
    precisions=("float32",),
    architecture=Architecture(128, 2, 128, 2, -2, 3000),
    lengths=("20", "40"),
    edges=(1, 17, 40),
    tokens=120,
    ways=("triton", "cells"),
    tiles=((32, 32, 1, 1), (64, 32, 1, 1)),
    matrix=64,
    copied=2**12,
    seconds=0.01,
    cells=12,
    partitions=3,
    padded=4,
)
