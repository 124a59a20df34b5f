"""The executor on Ray: streams by Ray Data, calls by tasks, instances by actors, training by Ray Train."""

import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import ray

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.config import ComputeSettings
from scgpt_ray.config.settings import parse_duration
from scgpt_ray.execution.cluster import cluster_address
from scgpt_ray.execution.gpu_wait import gpus_of_cluster, wait_for_gpus
from scgpt_ray.execution.metrics import record
from scgpt_ray.pipelines.executor import Failure, OnStep, Pool, Stages, tasks_of
from scgpt_ray.storage import Folder

if TYPE_CHECKING:
    from scgpt_ray.training.loop import Training

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayExecutor:
    """The Ray that this process is connected to, as an `Executor`."""

    @property
    def nodes(self) -> list[int]:
        """CPUs of each node that has CPUs; [1] if an autoscaler has not started a node yet."""
        found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        return [cpus for cpus in found if cpus] or [1]

    @property
    def gpus(self) -> int:
        """GPUs of the cluster."""
        return gpus_of_cluster()

    @property
    def is_here(self) -> bool:
        """Whether this is a Ray of this machine alone; a cluster may start nodes at any time."""
        hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        return cluster_address() == "local" and hosts == {socket.gethostname()}

    def pool(self, compute: ComputeSettings) -> Pool:
        """One actor per GPU; without GPUs, one CPU actor per node unless another number is requested.

        The kind of actor is what is asked for; GPUs that are not there yet are waited for.

        Raises:
            WorkerError: If they do not come.
        """
        gpus = self._gpus_for(compute)
        if gpus:
            share = compute.actors_per_gpu
            return Pool(size=gpus * share, num_gpus=1 / share, num_cpus=1, threads=1)
        workers = self.nodes
        size = compute.actors or len(workers)
        per_node = -(-size // len(workers))
        cpus = min(workers)
        cores = (cpus - 1) / per_node  # one core of a node is left to readers and writers
        return Pool(
            size=size,
            num_gpus=0,
            num_cpus=float(int(cores)) if cores >= 1 else max(0.1, 0.5 / per_node),
            threads=max(1, cpus // per_node),
        )

    def _gpus_for(self, compute: ComputeSettings) -> int:
        """Most GPUs that actors may have: as many as asked for, else those that are there."""
        asked = compute.asked_device
        if asked == "gpu":
            present = wait_for_gpus(compute.min_gpus, compute.gpus or 0, parse_duration(compute.wait_for_gpus))
            return compute.gpus or present
        if asked is None and not self.gpus and cluster_address() != "local":
            logger.info("the cluster has no GPU: CPUs are used; --device gpu waits for GPUs that it may start")
        return 0 if asked == "cpu" else self.gpus

    def stream(
        self, todo: tuple[Partition, ...], stages: Stages, pool: Pool | None
    ) -> Iterator[dict[str, Any] | Failure]:
        """Run a Ray Data pipeline."""
        from scgpt_ray.execution.ray_stream import stream  # Ray Data takes seconds to import

        return stream(todo, stages, pool)

    def report(self, output: Folder, counts: Mapping[str, int], levels: Mapping[str, float]) -> None:
        """Record metrics of Ray."""
        record(output.uri, counts, levels)

    def tasks(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, cpus: float = 1, gpus: int = 0
    ) -> list[Any]:
        """Run one task per call."""
        task = _remote(function).options(num_cpus=cpus, num_gpus=min(gpus, self.gpus))
        references = left = [task.remote(*arguments) for arguments in calls]
        with tasks_of(function, len(calls)) as tasks:
            while left:
                done, left = ray.wait(left, num_returns=len(left), timeout=1.0)
                ray.get(done)  # raises what a task raised
                tasks.advance(len(done))
        results: list[Any] = ray.get(references)
        return results

    def share(self, value: Any) -> Any:
        """Put the value into the object store, and return its reference."""
        return ray.put(value)

    def actors(
        self, kind: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, cpus: float
    ) -> list[Callable[..., Any]]:
        """Start actors, which are restarted when they die and end with the last reference to them."""
        actor = _remote(kind).options(num_cpus=cpus, max_restarts=-1, max_task_retries=-1)
        return [partial(_call, actor.remote(*arguments)) for arguments in calls]

    def train(self, training: "Training", output: Folder, workers: int, on_step: OnStep) -> None:
        """Run Ray Train."""
        from scgpt_ray.execution.ray_trainer import train

        train(training, output, workers, on_gpu=self.gpus > 0, nodes=self.nodes, on_step=on_step)


@cache
def _remote(function: Callable[..., Any]) -> Any:
    return ray.remote(function)


def _call(actor: Any, method: str, *arguments: Any) -> Callable[[], Any]:
    return partial(ray.get, getattr(actor, method).remote(*arguments))
