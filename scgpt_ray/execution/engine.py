"""The choice of an executor: this process, or Ray."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scgpt_ray.config import ComputeSettings, ExecutorChoice
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.pipelines.executor import Executor

SMALL = 10_000
"""Maximum number of cells processed without Ray. Starting Ray and an actor takes about 20 s on two cores."""


@dataclass(frozen=True)
class LocalOrRay:
    """The `Engine` behind `--executor`.

    Attributes:
        choice: `serial`: this process. `ray`: the Ray this process is connected to, the cluster of RAY_ADDRESS, or a
            local Ray. `auto`: Ray if it is already running, if actors or several workers are requested, or for more
            than SMALL cells; else this process.
    """

    choice: ExecutorChoice = "auto"

    @contextmanager
    def open(self, n_cells: int, *, compute: ComputeSettings | None = None, workers: int = 1) -> Iterator[Executor]:
        """Open the executor for some work; see `Engine.open`."""
        asks_for_actors = compute is not None and bool(compute.gpus or compute.actors)
        needs_ray = n_cells > SMALL or workers > 1 or asks_for_actors or has_ray()
        if self.choice == "serial" or (self.choice == "auto" and not needs_ray):
            yield SerialExecutor()
            return
        # Imported here: small work does not need Ray, not even installed.
        from scgpt_ray.execution.cluster import connected
        from scgpt_ray.execution.ray_executor import RayExecutor

        with connected():
            yield RayExecutor()


def has_ray() -> bool:
    """Whether this process is connected to Ray, or RAY_ADDRESS names a cluster."""
    ray = sys.modules.get("ray")
    return "RAY_ADDRESS" in os.environ or (ray is not None and ray.is_initialized())
