"""The choice of an executor: this process, or Ray."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scgpt_ray.config import DeviceSettings, ExecutorChoice
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.pipelines.executor import Executor, names_cluster

SMALL = 10_000
"""Maximum number of cells processed without Ray: so few do not repay its start."""


@dataclass(frozen=True)
class LocalOrRay:
    """The `Engine` behind `--executor`.

    Attributes:
        choice: `serial`: this process. `ray`: the Ray this process is connected to, that of `cluster_address`, or a
            local Ray. `auto`: Ray if it is already running, if actors or several workers are requested, or for more
            than SMALL cells; else this process.
    """

    choice: ExecutorChoice = "auto"

    def gpus(self) -> int:
        """GPUs of the Ray that is there, else of this machine."""
        if self.choice == "serial" or not has_ray():
            from scgpt_ray.network.embedder import gpus_of_machine

            return gpus_of_machine()
        from scgpt_ray.execution.cluster import connected
        from scgpt_ray.execution.ray_executor import RayExecutor

        with connected():
            return RayExecutor().gpus

    @contextmanager
    def open(self, n_cells: int, *, compute: DeviceSettings | None = None, workers: int = 1) -> Iterator[Executor]:
        """Open the executor for some work; see `Engine.open`."""
        if not self.uses_ray(n_cells, compute, workers):
            yield SerialExecutor()
            return
        # Imported here: small work does not need Ray, not even installed.
        from scgpt_ray.execution.cluster import connected
        from scgpt_ray.execution.ray_executor import RayExecutor

        with connected():
            yield RayExecutor()

    def uses_ray(self, n_cells: int, compute: DeviceSettings | None, workers: int) -> bool:
        """Whether Ray is chosen for some work."""
        if self.choice != "auto":
            return self.choice == "ray"
        asks_for_actors = compute is not None and bool(compute.gpus or compute.actors)
        return n_cells > SMALL or workers > 1 or asks_for_actors or has_ray()


def has_ray() -> bool:
    """Whether this process is connected to Ray, or RAY_ADDRESS names a cluster."""
    ray = sys.modules.get("ray")
    return names_cluster() or (ray is not None and ray.is_initialized())
