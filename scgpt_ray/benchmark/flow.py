"""The stage `flow`: overhead of Ray over the serial executor, on the same partitions.

Both make tokens, spend a fixed time in place of the network, and commit parts. The time is slept, so that the load of
the machine does not change it, and one call sleeps at a time, as on a device.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.plan import Partition, cut
from scgpt_ray.benchmark.measurement import Figure, Setting, private_bytes, seconds_of
from scgpt_ray.benchmark.synthetic import RAGGED, WHOLE_HUMAN_TOKENS, cell_lengths, synthetic_tokens
from scgpt_ray.config import BenchmarkSettings, ExecutorChoice
from scgpt_ray.execution.engine import LocalOrRay
from scgpt_ray.pipelines.executor import Failure, Pool, Stages
from scgpt_ray.pipelines.partition_steps import CommitPartition
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, matrix_array
from scgpt_ray.storage import Folder

CELLS_PER_PARTITION = 256
PARTITIONS = 24
SECONDS = 0.5
"""Default time of the stand-in for one partition."""

WIDTH = 512
_RUN = "0" * 64  # in place of a fingerprint


@dataclass(frozen=True)
class SyntheticReading:
    """Partition -> synthetic TOKENS.

    Attributes:
        tokens: Tokens per cell: a number or `ragged`.
    """

    tokens: str

    def __call__(self, partition: Partition) -> pa.Table:
        """Make the TOKENS of a partition."""
        lengths = cell_lengths(self.tokens, partition.n_cells, seed=partition.number)
        tokens = synthetic_tokens(lengths, WHOLE_HUMAN_TOKENS, WHOLE_HUMAN_TOKENS - 1, seed=partition.number)
        joinids = pa.array(np.arange(partition.first, partition.last + 1))
        return tokens.set_column(0, JOINID, joinids)


class StandIn:
    """A stand-in for the embedder, which takes a fixed time.

    Args:
        seconds: Time per partition.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = threading.Lock()

    def __call__(self, tokens: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """Return constant unit vectors, and the times and memory of the call."""
        began = time.time()
        with self._turn:
            time.sleep(self._seconds)
        vectors = np.full((len(tokens), WIDTH), WIDTH**-0.5, np.float32)
        embeddings = tokens.select([JOINID, N_GENES]).append_column(EMBEDDING, matrix_array(vectors))
        call = {"began_s": began, "ended_s": time.time(), "private_bytes": private_bytes()}
        return embeddings, {"n_tokens": 0, "n_cut": 0, "actor": {"device": "none"}, **call}


@dataclass(frozen=True)
class Call:
    """Times of one call by the clock of the actor, and the memory of driver and actor after it."""

    began_s: float
    ended_s: float
    actor_bytes: int
    driver_bytes: int

    @classmethod
    def of(cls, receipt: dict[str, Any]) -> "Call":
        """Read a receipt, and measure the memory of the driver."""
        return cls(receipt["began_s"], receipt["ended_s"], receipt["private_bytes"], private_bytes())


def measure(settings: BenchmarkSettings) -> list[Figure]:
    """Measure the overhead of Ray."""
    tokens, seconds = settings.tokens or RAGGED, settings.seconds or SECONDS
    partitions = cut(np.arange(settings.cells or PARTITIONS * CELLS_PER_PARTITION), CELLS_PER_PARTITION)
    reading = SyntheticReading(tokens)
    with tempfile.TemporaryDirectory(prefix="scgpt-ray-benchmark-") as place:
        loop, flow = (Folder.at(Path(place) / name) for name in ("loop", "flow"))
        loop_s = seconds_of(lambda: list(run("serial", partitions, reading, seconds, loop)))
        started = time.time()
        calls = [Call.of(receipt) for receipt in run("ray", partitions, reading, seconds, flow)]
    # Receipts arrive in bursts, so that the clock of the actor is used.
    flow_s = max(call.ended_s for call in calls) - min(call.began_s for call in calls)
    tenth, last = calls[len(calls) // 10], calls[-1]
    setting: Setting = {
        "partitions": len(partitions),
        "cells_per_partition": CELLS_PER_PARTITION,
        "tokens": tokens,
        "stand_in_s": seconds,
    }
    return [
        Figure("flow", "loop, a partition", loop_s / len(partitions), "s", setting),
        Figure("flow", "flow, a partition", flow_s / len(partitions), "s", setting),
        Figure("flow", "overhead", 100 * (flow_s / loop_s - 1), "%", setting),
        Figure("flow", "actor busy share", seconds * len(partitions) / flow_s, "", setting),
        Figure("flow", "until the first call", min(call.began_s for call in calls) - started, "s", setting),
        Figure("flow", "driver memory after a tenth", tenth.driver_bytes / 1e6, "MB", setting),
        Figure("flow", "driver memory at the end", last.driver_bytes / 1e6, "MB", setting),
        Figure("flow", "actor memory after a tenth", tenth.actor_bytes / 1e6, "MB", setting),
        Figure("flow", "actor memory at the end", last.actor_bytes / 1e6, "MB", setting),
    ]


def run(
    choice: ExecutorChoice,
    partitions: tuple[Partition, ...],
    reading: SyntheticReading,
    seconds: float,
    output: Folder,
) -> Iterator[dict[str, Any]]:
    """Run the stream of `embed` with the stand-in for the network; yields a receipt per part."""
    stages = Stages(reading, StandIn, (seconds,), CommitPartition(output, _RUN))
    with LocalOrRay(choice).open(sum(partition.n_cells for partition in partitions)) as executor:
        for receipt in executor.stream(partitions, stages, Pool(size=1, num_gpus=0, num_cpus=0.5, threads=1)):
            assert not isinstance(receipt, Failure), "synthetic cells do not fail"
            yield receipt
