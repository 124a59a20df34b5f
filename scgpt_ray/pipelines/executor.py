"""The protocol of executors, which run the steps of a pipeline: in this process, or on Ray (`scgpt_ray.execution`).

A step is a module-level function or a class whose arguments pickle: locators, settings and arrays, never handles or
weights. All executors give the same results.
"""

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.config import ComputeSettings, DeviceSettings
from scgpt_ray.errors import DamagedError, ScgptRayError
from scgpt_ray.progress import Stage

if TYPE_CHECKING:
    from scgpt_ray.storage import Folder
    from scgpt_ray.training.loop import Training

_CELLS_PER_GPU_PARTITION = 8192
_CELLS_PER_CPU_PARTITION = 256


def cells_per_partition(device: str) -> int:
    """Default size of a partition for a device of torch, such as cpu or cuda:0."""
    return _CELLS_PER_CPU_PARTITION if device == "cpu" else _CELLS_PER_GPU_PARTITION


def names_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster; `local` stands for a Ray that is started for a command."""
    return os.environ.get("RAY_ADDRESS") not in (None, "", "local")


ATTEMPTS = 3
"""How often a partition may fail, or kill its worker, before it is given up."""

RETRIES = "retries"
"""Key of a receipt: attempts that were repeated since the receipt before, of any partition."""

POISON = (DamagedError, RuntimeError, MemoryError)
"""Exceptions of reading or computing that may be due to the cells; see `is_poison`."""

_LOG_LINES = 5


def is_poison(error: BaseException) -> bool:
    """Whether an exception of reading or computing costs the partition and not the run.

    It does if stored bytes are damaged, memory is short, or a library under the network fails (RuntimeError). All else
    is a mistake of the user (InputError), work that cannot go on (RunError, OSError) or a fault of this package.
    """
    return isinstance(error, DamagedError) or (isinstance(error, POISON) and not isinstance(error, ScgptRayError))


@dataclass(frozen=True)
class Pool:
    """The actors that hold the network.

    Attributes:
        size: Most actors at a time.
        num_gpus: GPUs of one actor: 1, or a part of one that several actors share.
        num_cpus: CPUs of one actor, as Ray counts them; less than its threads, so that readers find room.
        threads: Threads of one actor.
    """

    size: int
    num_gpus: float
    num_cpus: float
    threads: int

    @property
    def read_cpus(self) -> float:
        """CPUs per read task: a core if GPUs wait for it, half a core if the network is the slow part."""
        return 1 if self.num_gpus else 0.5

    @property
    def write_cpus(self) -> float:
        """CPUs per write task, which mostly waits for the disk."""
        return 0.25

    @property
    def device(self) -> str:
        """Device type, as torch names it."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def cells_per_partition(self) -> int:
        """Default size of a partition: a call takes seconds on a GPU, and well under two minutes on a CPU."""
        return cells_per_partition(self.device)


@dataclass(frozen=True)
class Stages:
    """The three steps that every partition goes through.

    Attributes:
        read: Partition -> table of its cells.
        compute: Class of the actors, or None to commit what was read. An instance maps a table of cells to another
            table, and figures of the call (JSON values).
        arguments: Arguments of the class.
        commit: Writes the table of a partition, given the figures as well; returns a receipt (JSON values).
        attempts: How often reading, and how often computing may fail before a partition is given up.
    """

    read: Callable[[Partition], pa.Table]
    compute: Callable[..., Callable[[pa.Table], tuple[pa.Table, dict[str, Any]]]] | None
    arguments: tuple[Any, ...]
    commit: Callable[[pa.Table, Partition, dict[str, Any]], dict[str, Any]]
    attempts: int = ATTEMPTS


@dataclass(frozen=True)
class Failure:
    """A partition that was given up, in place of its receipt.

    Attributes:
        partition: The partition.
        reason: Why, in one line.
        log: Last lines of the traceback or of the log of the worker.
    """

    partition: Partition
    reason: str
    log: tuple[str, ...]

    @classmethod
    def of(cls, partition: Partition, error: BaseException) -> "Failure":
        """The failure that an exception means."""
        lines = "".join(traceback.format_exception(error)).splitlines()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return cls(partition, reason, tuple(lines[-_LOG_LINES:]))

    @classmethod
    def killed(cls, partition: Partition, attempts: int, death: str, log: Sequence[str]) -> "Failure":
        """That of a partition that killed its workers; `death` explains that of the last, `log` is its log."""
        return cls(partition, f"killed its worker {attempts} times: {death}", tuple(log[-_LOG_LINES:]))


def tasks_of(function: Callable[..., Any], n: int) -> Stage:
    """The stage of some tasks, named after their function."""
    return Stage(function.__name__.strip("_").replace("_", " "), n, unit="tasks", brief=True)


OnStep = Callable[[int, Mapping[str, float]], None]
"""Called in the driver with the number of a training step and its metrics."""


class Executor(Protocol):
    """Runs the steps of a pipeline."""

    @property
    def nodes(self) -> list[int]:
        """CPUs of each machine."""

    @property
    def gpus(self) -> int:
        """Total number of GPUs."""

    @property
    def is_here(self) -> bool:
        """Whether all work runs on this machine, and finds the files on its disk."""

    def pool(self, compute: ComputeSettings) -> Pool:
        """Choose the actors for a stream of partitions."""

    def stream(
        self, todo: tuple[Partition, ...], stages: Stages, pool: Pool | None
    ) -> "Iterator[dict[str, Any] | Failure]":
        """Run partitions through the stages; yields receipts, with RETRIES, in the order in which partitions finish.

        A partition whose reading or computing fails (`is_poison`) or kills its worker `stages.attempts` times yields a
        Failure; other exceptions are raised.
        """

    def report(self, output: "Folder", counts: Mapping[str, int], levels: Mapping[str, float]) -> None:
        """Show figures of the run to those who watch the cluster.

        Args:
            output: Output folder of the run.
            counts: What has been done since the last call, by name.
            levels: What is now, by name.
        """

    def tasks(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, cpus: float = 1, gpus: int = 0
    ) -> list[Any]:
        """Call a function with each tuple of arguments; returns results in the order of the calls."""

    def share(self, value: Any) -> Any:
        """A stand-in for a large value that is passed to several calls, so that the value is sent once."""

    def actors(
        self, kind: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, cpus: float
    ) -> "list[Callable[..., Any]]":
        """Create an instance of a class for each tuple of arguments, each in a process that may be restarted.

        Returns:
            For each instance a function `(method, *arguments) -> wait` that starts a call; `wait()` returns its result.
        """

    def train(self, training: "Training", output: "Folder", workers: int, on_step: OnStep) -> None:
        """Run the remaining steps of a training run; its state is saved in `output` (`training.state`)."""


class Engine(Protocol):
    """Opens the executor that some work needs."""

    def uses_ray(self, n_cells: int, compute: DeviceSettings | None, workers: int) -> bool:
        """Whether that is Ray; the arguments are those of `open`."""

    def gpus(self) -> int:
        """GPUs that a run would find, before anything is started."""

    def open(
        self, n_cells: int, *, compute: DeviceSettings | None = None, workers: int = 1
    ) -> AbstractContextManager[Executor]:
        """Open an executor.

        Args:
            n_cells: Number of cells to process.
            compute: Requested actors.
            workers: Number of training processes.

        Raises:
            WorkerError: If Ray does not start, or the cluster does not answer.
        """
