"""What a stage works with."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from scgpt_ray.benchmark.gpu.report import Report
from scgpt_ray.benchmark.gpu.sizes import Sizes
from scgpt_ray.benchmark.model import matmul_rate, random_checkpoint_of
from scgpt_ray.network.checkpoint import Checkpoint
from scgpt_ray.network.precision import DTYPES


@dataclass(frozen=True)
class Bench:
    """A device, what to do on it, and where to report.

    Attributes:
        device: Where the network computes.
        sizes: How large everything is.
        report: For the stage's lines.
        output: Folder for anything else it writes.
        golden: Folder of golden embeddings, if there is one.
    """

    device: torch.device
    sizes: Sizes
    report: Report
    output: Path
    golden: Path | None

    @property
    def dtype(self) -> torch.dtype:
        """Of what is measured."""
        return DTYPES[self.sizes.precision]

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Random weights."""
        return random_checkpoint_of(self.sizes.architecture)

    @cached_property
    def ceiling(self) -> float:
        """FLOP/s of a large square product, which rates are compared with."""
        return matmul_rate(self.device, self.dtype, self.sizes.matrix, self.sizes.seconds)
