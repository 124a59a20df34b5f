"""A stream of partitions on Ray Data: one row is one partition.

A row holds a whole table, one `large_list` value per column, so that Ray neither splits nor merges partitions, and the
flat buffers are not copied. The row of a partition that was given up holds its failure instead.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import ReadTask
from ray.data.exceptions import ExecutionTimeoutError

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.execution.attempts import Attempts, attempt
from scgpt_ray.execution.cluster import failed
from scgpt_ray.execution.departure import leave_in_time
from scgpt_ray.pipelines.executor import RETRIES, Failure, Pool, Stages
from scgpt_ray.progress import note

_NO_PROGRESS_S = 900
_CALLS = 2
"""Calls of an actor at a time: one computes while Ray moves the rows of the other."""
_BYTES_PER_CELL = 8_000  # about 2,000 genes of 3 bytes, an id and a few columns; for Ray's accounting only
_RECEIPT = "receipt"
_FAILURE = "row.failure"
_PARTITION = [field.name for field in fields(Partition)]


def stream(todo: tuple[Partition, ...], stages: Stages, pool: Pool | None) -> Iterator[dict[str, Any] | Failure]:
    """Run partitions through the stages on the Ray this process is connected to; see `Executor.stream`.

    Args:
        todo: Partitions to process.
        stages: Stages of each partition.
        pool: Actors for `stages.compute`; None without that stage.
    """
    note("start actors and readers")
    _quiet_data()
    attempts = Attempts.start(stages.attempts)
    read_cpus = pool.read_cpus if pool else 1
    dataset = ray.data.read_datasource(
        PartitionSource(stages.read, todo, attempts), override_num_blocks=len(todo), num_cpus=read_cpus
    )
    if stages.compute is not None:
        assert pool is not None, "actors come from a pool"
        dataset = dataset.map_batches(
            _Actor,
            fn_constructor_args=(stages.compute, stages.arguments, attempts),
            batch_size=1,
            batch_format="pyarrow",
            num_gpus=pool.num_gpus or None,
            num_cpus=pool.num_cpus,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=min(pool.size, len(todo)), max_concurrent_calls_per_actor=_CALLS
            ),
        )
    committed = dataset.map_batches(
        _commit,
        fn_args=(stages.commit,),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=pool.write_cpus if pool else 0.25,
    )
    try:
        for row in committed.iter_rows():
            if row[_FAILURE]:
                yield _failure(row[_FAILURE])
            else:
                yield {**json.loads(row[_RECEIPT]), RETRIES: ray.get(attempts.retries.remote())}
    except ExecutionTimeoutError as error:
        raise failed(error) from error
    finally:
        ray.kill(attempts)


def _quiet_data() -> None:
    """Configure Ray Data; a dataset copies these settings when it is built."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # the wrapper loses its cause between processes
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S  # ends a run that hangs
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that progress bars are off
    for name in ("exceptions", "_internal.execution.streaming_executor_state"):
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)  # log tracebacks of what they raise


class _Actor:
    """An actor around an instance of `Stages.compute`."""

    def __init__(self, kind: Callable[..., Any], arguments: tuple[Any, ...], attempts: Any) -> None:
        self._compute, self._attempts = kind(*arguments), attempts
        self._free = threading.Semaphore(_CALLS)
        threading.Thread(target=leave_in_time, args=(self._free, _CALLS, attempts), daemon=True).start()

    def __call__(self, row: pa.Table) -> pa.Table:
        if _FAILURE in row.column_names:
            return row
        table, partition, _ = from_row(row)
        step = partial(self._compute, table)
        with self._free:
            done = attempt(self._attempts, "compute", partition, step, in_new_process=True)
        return _failed(done) if isinstance(done, Failure) else as_row(done[0], partition, done[1])


def _commit(row: pa.Table, commit: Callable[..., dict[str, Any]]) -> pa.Table:
    if _FAILURE in row.column_names:
        return pa.table({_RECEIPT: [""], _FAILURE: row[_FAILURE]})
    return pa.table({_RECEIPT: [json.dumps(commit(*from_row(row)))], _FAILURE: [""]})


def _failed(failure: Failure) -> pa.Table:
    """The row of a partition that was given up."""
    return pa.table({_FAILURE: [json.dumps({**asdict(failure), "partition": _described(failure.partition)})]})


def _failure(text: str) -> Failure:
    values = json.loads(text)
    return Failure(Partition(**values["partition"]), values["reason"], tuple(values["log"]))


def _described(partition: Partition) -> dict[str, Any]:
    """A partition without the pieces that it is read in."""
    return {name: getattr(partition, name) for name in _PARTITION}


def as_row(table: pa.Table, partition: Partition, figures: dict[str, Any] | None = None) -> pa.Table:
    """Wrap the table of a partition into one row, with the partition and the figures of its computation."""
    columns = {
        name: pa.LargeListArray.from_arrays(pa.array([0, table.num_rows]), column.combine_chunks())
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    values = {"row.partition": [json.dumps(_described(partition))], "row.figures": [json.dumps(figures or {})]}
    return pa.table({**values, **columns})


def from_row(row: pa.Table) -> tuple[pa.Table, Partition, dict[str, Any]]:
    """Unwrap the table, partition and figures of a row made by `as_row`."""
    assert row.num_rows == 1, "one row is one partition"
    partition, figures = (json.loads(row[f"row.{name}"][0].as_py()) for name in ("partition", "figures"))
    names = [name for name in row.column_names if not name.startswith("row.")]
    table = pa.table({name: row[name].combine_chunks().flatten() for name in names})
    return table, Partition(**partition), figures


class PartitionSource(ray.data.Datasource):
    """One read task per partition.

    Args:
        read: Partition -> table.
        partitions: Partitions to read.
        attempts: Counts the attempts at each partition.
    """

    def __init__(self, read: Callable[[Partition], pa.Table], partitions: tuple[Partition, ...], attempts: Any) -> None:
        super().__init__()
        self._read, self._attempts = read, attempts
        self._partitions = partitions

    def get_read_tasks(self, *_args: Any, **_kwargs: Any) -> list[ReadTask]:
        """The read tasks; cheap and repeatable, since Ray calls this several times."""
        return [
            ReadTask(partial(_read_row, self._read, partition, self._attempts), _metadata(partition))
            for partition in self._partitions
        ]

    def estimate_inmemory_data_size(self) -> int:
        """Approximate size of all rows in bytes."""
        return sum(partition.n_cells for partition in self._partitions) * _BYTES_PER_CELL


def _read_row(read: Callable[[Partition], pa.Table], partition: Partition, attempts: Any) -> Iterable[Block]:
    done = attempt(attempts, "read", partition, partial(read, partition))
    yield _failed(done) if isinstance(done, Failure) else as_row(done, partition)


def _metadata(partition: Partition) -> BlockMetadata:
    return BlockMetadata(num_rows=1, size_bytes=partition.n_cells * _BYTES_PER_CELL, input_files=None, exec_stats=None)
