"""The stage `flow` of the benchmark: what Ray adds to a plain loop over the same partitions.

Both make tokens, spend a fixed time where the network would be, and commit parts. The time is slept, so that
nothing else on the machine changes it, and by one call at a time, as a device computes.
"""

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.plan import Partition, cut
from scgpt_ray.benchmark.measurement import Figure, private_bytes, seconds_of
from scgpt_ray.benchmark.synthetic import WHOLE_HUMAN_TOKENS, cell_lengths, synthetic_tokens
from scgpt_ray.execution.cluster import Pool, connected
from scgpt_ray.execution.partitions import as_row, from_row
from scgpt_ray.execution.stream import Stages, stream
from scgpt_ray.parts.parts import write_part
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, matrix_array
from scgpt_ray.storage import Folder

CELLS_PER_PARTITION = 256
PARTITIONS = 24
SECONDS = 0.5
"""That the stand-in takes for a partition unless told otherwise."""

WIDTH = 512
_RUN = "0" * 64  # in place of a fingerprint


@dataclass(frozen=True)
class MadeUpReading:
    """Reading that makes cells up.

    Args:
        tokens: Of each cell: a number or `ragged`.
    """

    tokens: str

    def read(self, partition: Partition) -> pa.Table:
        """TOKENS of a partition."""
        lengths = cell_lengths(self.tokens, partition.n_cells, seed=partition.number)
        tokens = synthetic_tokens(lengths, WHOLE_HUMAN_TOKENS, WHOLE_HUMAN_TOKENS - 1, seed=partition.number)
        joinids = pa.array(np.arange(partition.first, partition.last + 1))
        return tokens.set_column(0, JOINID, joinids)


class StandIn:
    """An embedder of fixed cost.

    Args:
        seconds: That a partition takes.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = threading.Lock()

    def __call__(self, row: pa.Table) -> pa.Table:
        """A row of TOKENS to a row of EMBEDDINGS."""
        tokens, values = from_row(row)
        began = time.time()
        embeddings = self.embed(tokens)
        call = {"began_s": began, "ended_s": time.time(), "private_bytes": private_bytes()}
        return as_row(embeddings, **values, n_tokens=0, embed_s=self._seconds, actor=json.dumps(call))

    def embed(self, tokens: pa.Table) -> pa.Table:
        """Unit vectors that say nothing."""
        with self._turn:
            time.sleep(self._seconds)
        vectors = np.full((len(tokens), WIDTH), WIDTH**-0.5, np.float32)
        return tokens.select([JOINID, N_GENES]).append_column(EMBEDDING, matrix_array(vectors))


@dataclass(frozen=True)
class Call:
    """One call of the actor, by its own clock, and the memory of driver and actor after it."""

    began_s: float
    ended_s: float
    actor_bytes: int
    driver_bytes: int

    @classmethod
    def of(cls, receipt: dict[str, str]) -> "Call":
        """What a receipt says, as it arrives."""
        told = json.loads(receipt["actor"])
        return cls(told["began_s"], told["ended_s"], told["private_bytes"], private_bytes())


def benchmark_flow(tokens: str, n_cells: int | None, seconds: float = SECONDS) -> list[Figure]:
    """Measure the flow against a loop.

    Args:
        tokens: Of a cell: a number or `ragged`.
        n_cells: In all.
        seconds: That the stand-in takes for a partition.
    """
    n_cells = n_cells or PARTITIONS * CELLS_PER_PARTITION
    partitions = cut(np.arange(n_cells), CELLS_PER_PARTITION)
    reading = MadeUpReading(tokens)
    with tempfile.TemporaryDirectory(prefix="scgpt-ray-benchmark-") as place:
        loop, flow = (Folder.at(Path(place) / name) for name in ("loop", "flow"))
        loop_s = seconds_of(lambda: run_loop(partitions, reading, seconds, loop))
        with connected():
            started = time.time()
            calls = [Call.of(receipt) for receipt in run_flow(partitions, reading, seconds, flow)]
    # Receipts arrive in bursts: only the actor's own clock tells how long partitions took.
    flow_s = max(call.ended_s for call in calls) - min(call.began_s for call in calls)
    tenth, last = calls[len(calls) // 10], calls[-1]
    setting: dict[str, str | int | float] = {
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


def run_loop(partitions: Sequence[Partition], reading: MadeUpReading, seconds: float, output: Folder) -> None:
    """The same work without Ray."""
    stand_in = StandIn(seconds)
    for partition in partitions:
        write_part(output, stand_in.embed(reading.read(partition)), partition, fingerprint=_RUN, n_tokens=0)


def run_flow(
    partitions: tuple[Partition, ...], reading: MadeUpReading, seconds: float, output: Folder
) -> Iterator[dict[str, str]]:
    """The pipeline of `embed`, with one actor that stands in for the network; a receipt per part."""
    stages = Stages(reading=reading, actor=StandIn, arguments=(seconds,), output=output, fingerprint=_RUN)
    yield from stream(partitions, stages, Pool(size=1, num_gpus=0, num_cpus=0.5, threads=1))
