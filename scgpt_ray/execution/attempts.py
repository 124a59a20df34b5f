"""Attempts at partitions on Ray, counted outside the workers, which may die of what they read.

Ray repeats the call of a dead worker without end. Each call therefore asks first how often its partition was begun; a
partition that was begun too often is given up instead of begun again.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import ray
from ray.core.generated.gcs_pb2 import WorkerTableData
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.pipelines.executor import POISON, Failure, is_poison

_LOG_BYTES = 4096
_DEATH_CHARACTERS = 330


class Worker(NamedTuple):
    """A process that makes an attempt: its id, and the file to which Ray sends its stderr."""

    id: str
    log: str

    @classmethod
    def this(cls) -> "Worker":
        """This process."""
        stderr = Path("/proc/self/fd/2")  # Linux
        return cls(ray.get_runtime_context().get_worker_id(), str(stderr.readlink()) if stderr.exists() else "")

    def death(self) -> str:
        """How Ray explains that it died, such as by its monitor of memory; empty if it does not."""
        # Private: the public interface asks the dashboard, which a local Ray does not have.
        accessor = ray._private.state.state._connect_and_get_accessor()
        stored = accessor.get_worker_info(ray.WorkerID.from_hex(self.id))
        return shorten(WorkerTableData.FromString(stored).exit_detail, _DEATH_CHARACTERS) if stored else ""

    def last_lines(self) -> list[str]:
        """Last lines of its log; where it is, if it is on another machine."""
        if not Path(self.log).is_file():
            return [f"its log is {self.log} on the machine of the worker"]
        with Path(self.log).open("rb") as stream:
            stream.seek(max(0, Path(self.log).stat().st_size - _LOG_BYTES))
            return stream.read().decode(errors="replace").splitlines()


class Attempts:
    """An actor in the node of the driver; a partition is counted once for each of its stages.

    Args:
        most: How often a stage of a partition may be begun.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun: defaultdict[tuple[str, Partition], int] = defaultdict(int)
        self._failures: dict[tuple[str, Partition], Failure] = {}
        self._retries = 0
        self._workers: dict[tuple[str, Partition], Worker] = {}

    @classmethod
    def start(cls, most: int) -> Any:
        """Start the actor. Ray does not count the references in what it pickles: `ray.kill` ends it."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        return ray.remote(cls).options(**options).remote(most)

    def begin(self, stage: str, partition: Partition, worker: Worker) -> tuple[int, Failure | None, Worker] | None:
        """Count an attempt.

        Args:
            stage: The stage.
            partition: The partition.
            worker: Who would make it.

        Returns:
            None if it may be made; else the number of attempts so far, the failure of the last one, or None if it
            killed its worker, and that worker.
        """
        key = stage, partition
        if self._begun[key] < self._most:
            self._retries += self._begun[key] > 0
            self._begun[key] += 1
            self._failures.pop(key, None)
            self._workers[key] = worker
            return None
        return self._begun[key], self._failures.get(key), self._workers[key]

    def failed(self, stage: str, failure: Failure) -> None:
        """Note why an attempt failed; one without a note killed its worker."""
        self._failures[stage, failure.partition] = failure

    def retries(self) -> int:
        """Number of repeated attempts since the last call."""
        retries, self._retries = self._retries, 0
        return retries

    def done(self, stage: str, partition: Partition) -> None:
        """Forget a stage that is done: if its result is lost with a node, it starts afresh."""
        self._begun.pop((stage, partition), None)


def attempt(
    attempts: Any, stage: str, partition: Partition, step: Callable[[], Any], *, in_new_process: bool = False
) -> Any:
    """Take a step that may fail or kill this process.

    Args:
        attempts: The actor.
        stage: Name of the step.
        partition: The partition.
        step: The step.
        in_new_process: Whether a failure ends this process, for Ray to repeat the call in a new one: an error of CUDA
            lasts as long as the process.

    Returns:
        The result of the step; a Failure if the partition is given up.
    """
    while (last := ray.get(attempts.begin.remote(stage, partition, Worker.this()))) is None:
        try:
            result = step()
        except POISON as error:
            if not is_poison(error):
                raise
            ray.get(attempts.failed.remote(stage, Failure.of(partition, error)))
            if in_new_process:
                os._exit(1)
        else:
            attempts.done.remote(stage, partition)
            return result
    count, failure, worker = last
    return failure or Failure.killed(partition, count, worker.death(), worker.last_lines())
