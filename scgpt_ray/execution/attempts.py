"""Attempts at partitions on Ray, counted outside the workers, which may die of what they read.

Ray repeats the call of a dead worker without end. Each call therefore asks first how often its partition was begun; a
partition that was begun too often is given up instead of begun again.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.pipelines.executor import POISON, Failure, is_poison

_LOG_BYTES = 4096


class Attempts:
    """An actor in the node of the driver; a partition is counted once for each of its stages.

    Args:
        most: How often a stage of a partition may be begun.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun: defaultdict[tuple[str, Partition], int] = defaultdict(int)
        self._failures: dict[tuple[str, Partition], Failure] = {}
        self._logs: dict[tuple[str, Partition], str] = {}
        self._retries = 0

    @classmethod
    def start(cls, most: int) -> Any:
        """Start the actor; it ends with the last reference to it."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        return ray.remote(cls).options(**options).remote(most)

    def begin(self, stage: str, partition: Partition, log: str) -> tuple[int, Failure | None, str] | None:
        """Count an attempt.

        Args:
            stage: The stage.
            partition: The partition.
            log: Log file of the worker that would make it.

        Returns:
            None if it may be made; else the number of attempts so far, the failure of the last one, or None if it
            killed its worker, and the log file of that worker.
        """
        key = stage, partition
        if self._begun[key] < self._most:
            self._retries += self._begun[key] > 0
            self._begun[key] += 1
            self._failures.pop(key, None)
            self._logs[key] = log
            return None
        return self._begun[key], self._failures.get(key), self._logs[key]

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
    while (last := ray.get(attempts.begin.remote(stage, partition, _log_file()))) is None:
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
    count, failure, log = last
    return failure or Failure.killed(partition, count, _tail(log))


def _log_file() -> str:
    """The file to which Ray sends the stderr of this worker."""
    place = Path("/proc/self/fd/2")  # Linux
    return str(place.readlink()) if place.exists() else ""


def _tail(log: str) -> list[str]:
    """Last lines of a log file; where it is, if it is on another machine."""
    if not Path(log).is_file():
        return [f"its log is {log} on the machine of the worker"]
    with Path(log).open("rb") as stream:
        stream.seek(max(0, Path(log).stat().st_size - _LOG_BYTES))
        return stream.read().decode(errors="replace").splitlines()
