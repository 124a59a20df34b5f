"""The executor in this process, for small work, notebooks and tests; the reference for the executor on Ray."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.config import ComputeSettings
from scgpt_ray.pipelines.executor import POISON, RETRIES, Failure, OnStep, Pool, Stages, is_poison, tasks_of
from scgpt_ray.progress import note
from scgpt_ray.storage import Folder

if TYPE_CHECKING:
    from scgpt_ray.training.loop import Training


@dataclass(frozen=True)
class SerialExecutor:
    """This process as an `Executor`."""

    @cached_property
    def nodes(self) -> list[int]:
        """Number of CPUs that this process may use, as a list of one."""
        affinity = getattr(os, "sched_getaffinity", None)  # Linux
        return [len(affinity(0)) if affinity else os.cpu_count() or 1]

    @cached_property
    def gpus(self) -> int:
        """1 if torch finds a GPU, else 0."""
        from scgpt_ray.network.embedder import has_gpu

        return int(has_gpu())

    @property
    def is_here(self) -> bool:
        """True."""
        return True

    def pool(self, compute: ComputeSettings) -> Pool:
        """One actor with all cores, on the GPU if there is one and no CPU actors are requested."""
        on_gpu = self.gpus and compute.asked_device != "cpu"
        return Pool(size=1, num_gpus=int(on_gpu), num_cpus=1, threads=self.nodes[0])

    def stream(
        self, todo: tuple[Partition, ...], stages: Stages, _pool: Pool | None
    ) -> Iterator[dict[str, Any] | Failure]:
        """Process one partition after the other."""
        note("load the network" if stages.compute else "")
        compute = stages.compute(*stages.arguments) if stages.compute else None

        def computed(partition: Partition) -> tuple[pa.Table, dict[str, Any]]:
            note(f"read partition {partition.number}")
            table = stages.read(partition)
            note(f"compute partition {partition.number}")
            return compute(table) if compute is not None else (table, {})

        retries = 0
        for partition in todo:
            done, more = _attempted(computed, partition, stages.attempts)
            retries += more
            if isinstance(done, Failure):
                yield done
                continue
            yield {**stages.commit(done[0], partition, done[1]), RETRIES: retries}
            retries = 0

    def report(self, output: Folder, counts: Mapping[str, int], levels: Mapping[str, float]) -> None:
        """Nothing: there is no cluster to be watched."""

    def tasks(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, cpus: float = 1, gpus: int = 0
    ) -> list[Any]:
        """Make one call after the other."""
        results = []
        with tasks_of(function, len(calls)) as tasks:
            for arguments in calls:
                results.append(function(*arguments))
                tasks.advance()
        return results

    def share(self, value: Any) -> Any:
        """Return the value."""
        return value

    def actors(
        self, kind: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, cpus: float
    ) -> list[Callable[..., Any]]:
        """Create instances in this process; calls are computed when they are waited for."""
        return [partial(_call, kind(*arguments)) for arguments in calls]

    def train(self, training: "Training", output: Folder, workers: int, on_step: OnStep) -> None:
        """Train in this process, on the GPU if there is one."""
        # Imported here: only pretraining needs a network with gradients.
        from scgpt_ray.training.loop import fit
        from scgpt_ray.training.state import LocalContext, device_of, read_state

        assert workers == 1, "several workers need Ray"
        fit(training, device_of(self.gpus), LocalContext(output, on_step), read_state(output))


def _attempted(
    computed: Callable[[Partition], tuple[pa.Table, dict[str, Any]]], partition: Partition, attempts: int
) -> tuple[tuple[pa.Table, dict[str, Any]] | Failure, int]:
    """Table and figures of a partition, or the last failure; and the number of repetitions."""
    retries = 0
    while True:
        try:
            return computed(partition), retries
        except POISON as error:
            if not is_poison(error):
                raise
            if retries + 1 == attempts:
                return Failure.of(partition, error), retries
        retries += 1


def _call(instance: Any, method: str, *arguments: Any) -> Callable[[], Any]:
    return partial(getattr(instance, method), *arguments)
