"""Partitions on their way through Ray Data: one row is one partition.

A row holds whole tables as lists, so that Ray can neither cut a partition nor merge two, and the flat buffers arrive
without a copy. The cells of a table become one `large_list` value per column.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import ReadTask

from scgpt_ray.atlas.genes import GeneMap
from scgpt_ray.atlas.plan import Partition
from scgpt_ray.atlas.source import Source
from scgpt_ray.network.checkpoint_files import read_vocabulary
from scgpt_ray.parts.manifest import GENES
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import TokenRules, tokenize
from scgpt_ray.tokenizer.vocabulary import Vocabulary

_BYTES_PER_CELL = 8_000  # about 2,000 genes of 3 bytes, an id and some columns; for Ray's accounting only


def as_row(table: pa.Table, **values: int | float | str) -> pa.Table:
    """Wrap a table of cells into one row, with plain values beside it."""
    columns = {
        name: pa.LargeListArray.from_arrays(pa.array([0, table.num_rows]), column.combine_chunks())
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return pa.table({**{f"row.{key}": [value] for key, value in values.items()}, **columns})


def from_row(row: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    """The table and the values of one row."""
    assert row.num_rows == 1, "one row is one partition"
    values = {name.removeprefix("row."): row[name][0].as_py() for name in row.column_names if name.startswith("row.")}
    names = [name for name in row.column_names if not name.startswith("row.")]
    return pa.table({name: row[name].combine_chunks().flatten() for name in names}), values


class Reading(Protocol):
    """A way to make the TOKENS of a partition, as a value that pickles."""

    def read(self, partition: Partition) -> pa.Table:
        """Read and tokenise one partition."""


@dataclass(frozen=True)
class ReadJob:
    """What a read task needs to know: locators and rules, no handles and no weights.

    Attributes:
        source: Where the cells are.
        output: Folder with genes.parquet.
        checkpoint: Name of the checkpoint, whose vocabulary is read.
        rules: Token rules.
    """

    source: Source
    output: Folder
    checkpoint: str
    rules: TokenRules

    def read(self, partition: Partition) -> pa.Table:
        """Read and tokenise one partition, block by block: TOKENS."""
        blocks = self.source.read(partition, _gene_tokens(self.output))
        tokenized = partial(tokenize, vocabulary=_vocabulary(self.checkpoint), rules=self.rules)
        # Not a loop, whose variable would keep the counts of a block until the next one is read.
        return pa.concat_tables(map(tokenized, blocks))


@lru_cache(maxsize=4)
def _gene_tokens(output: Folder) -> npt.NDArray[np.int32]:
    """Token by var joinid; opened once per worker process."""
    with output.open(GENES) as stream:
        return GeneMap.from_table(pq.read_table(stream)).lookup()


@lru_cache(maxsize=4)
def _vocabulary(checkpoint: str) -> Vocabulary:
    return read_vocabulary(checkpoint)


def _read_row(job: Reading, partition: Partition) -> Iterable[Block]:
    yield as_row(job.read(partition), partition=json.dumps(asdict(partition)))


class PartitionSource(ray.data.Datasource):
    """One read task per partition.

    Args:
        job: How to read.
        partitions: What is still to be done.
    """

    def __init__(self, job: Reading, partitions: tuple[Partition, ...]) -> None:
        super().__init__()
        self._job = job
        self._partitions = partitions

    def get_read_tasks(self, *_args: Any, **_kwargs: Any) -> list[ReadTask]:
        """The tasks; Ray asks several times, so this is cheap and always the same."""
        return [ReadTask(_reader(self._job, partition), _metadata(partition)) for partition in self._partitions]

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all rows together, roughly."""
        return sum(partition.n_cells for partition in self._partitions) * _BYTES_PER_CELL


def _reader(job: Reading, partition: Partition) -> Callable[[], Iterable[Block]]:
    return partial(_read_row, job, partition)


def _metadata(partition: Partition) -> BlockMetadata:
    return BlockMetadata(num_rows=1, size_bytes=partition.n_cells * _BYTES_PER_CELL, input_files=None, exec_stats=None)
