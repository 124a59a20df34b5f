"""What a pipeline asks of the place where its steps run; `scgpt_ray.execution` has two: this process, and Ray.

A step is a module-level function or a class whose arguments pickle: locators, settings and arrays, never handles or
weights. Both executors give the same results, so the serial one is the slow twin of Ray.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.config import ComputeSettings

if TYPE_CHECKING:
    from scgpt_ray.storage import Folder
    from scgpt_ray.training.loop import Training

_CELLS_PER_GPU_PARTITION = 8192
_CELLS_PER_CPU_PARTITION = 256


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
        """CPUs of one read task: a core where GPUs wait for it, half of one where the network is the slow part."""
        return 1 if self.num_gpus else 0.5

    @property
    def write_cpus(self) -> float:
        """CPUs of one write task, which mostly waits for the disk."""
        return 0.25

    @property
    def device(self) -> str:
        """Torch's name of the kind of device."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def cells_per_partition(self) -> int:
        """Default size: a call lasts seconds on a GPU and well under two minutes on CPU actors."""
        return _CELLS_PER_GPU_PARTITION if self.num_gpus else _CELLS_PER_CPU_PARTITION


@dataclass(frozen=True)
class Stages:
    """The three steps that every partition goes through.

    Attributes:
        read: Partition -> table of its cells.
        compute: Class of the actors, or None to commit what was read; an instance maps a table of cells to another one
            and the figures of the call (JSON values).
        arguments: Of the class.
        commit: Writes the table of a partition; gets its figures, too, and returns a receipt (JSON values).
    """

    read: Callable[[Partition], pa.Table]
    compute: Callable[..., Callable[[pa.Table], tuple[pa.Table, dict[str, Any]]]] | None
    arguments: tuple[Any, ...]
    commit: Callable[[pa.Table, Partition, dict[str, Any]], dict[str, Any]]


OnStep = Callable[[int, Mapping[str, float]], None]
"""Called in the driver with the number of a training step and its metrics."""


class Executor(Protocol):
    """A place where steps run."""

    @property
    def nodes(self) -> list[int]:
        """CPUs of each machine."""

    @property
    def gpus(self) -> int:
        """GPUs of all machines together."""

    def pool(self, compute: ComputeSettings) -> Pool:
        """Choose the actors for a stream of partitions."""

    def stream(self, todo: tuple[Partition, ...], stages: Stages, pool: Pool | None) -> Iterator[dict[str, Any]]:
        """Run partitions through the stages; yields the receipts in the order in which partitions finish."""

    def tasks(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, cpus: float = 1, gpus: int = 0
    ) -> list[Any]:
        """Call a function with each tuple of arguments; returns the results in that order."""

    def share(self, value: Any) -> Any:
        """What to pass to several calls in place of a large value, so that it travels once."""

    def actors(
        self, kind: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, cpus: float
    ) -> "list[Callable[..., Any]]":
        """An instance of a class for each tuple of arguments, each in a process that may be restarted.

        Returns:
            For each a function `(method, *arguments) -> wait`, which begins a call; `wait()` returns its result.
        """

    def train(self, training: "Training", output: "Folder", workers: int, on_step: OnStep) -> None:
        """Do the steps of a training run that are left, and keep its state in the output (`training.state`)."""


class Engine(Protocol):
    """Opens the executor that a verb's work needs."""

    def gpus(self) -> int:
        """GPUs that a run would find, before anything is started."""

    def open(
        self, n_cells: int, *, compute: ComputeSettings | None = None, workers: int = 1
    ) -> AbstractContextManager[Executor]:
        """Open an executor.

        Args:
            n_cells: Cells to be processed.
            compute: The actors that were asked for.
            workers: Processes that must work together.

        Raises:
            WorkerError: If Ray does not start, or the cluster does not answer.
        """
