"""Token files for training: one Parquet file per partition, written atomically.

The first row group has the training cells, the second the validation cells, so that either can be read alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.parts.footer import read_all, read_stamp, stamped
from scgpt_ray.parts.parts import part_name
from scgpt_ray.schema import BIN, known_texts, ragged
from scgpt_ray.storage import Folder

_FOOTER = b"scgpt_ray.tokens"


@dataclass(frozen=True)
class TokenPart:
    """The footer of a token file.

    Attributes:
        fingerprint: Digest of what determines the tokens.
        partition: Number of the partition.
        joinids: Digest of the planned joinids.
        n_train: Number of training cells.
        n_validation: Number of validation cells.
        n_tokens: Number of tokens of all cells.
        labels: Label -> number of training cells.
        domains: Domain -> number of training cells.
    """

    fingerprint: str
    partition: int
    joinids: str
    n_train: int
    n_validation: int
    n_tokens: int
    labels: dict[str, int]
    domains: dict[str, int]

    @property
    def name(self) -> str:
        """Name of the file, which depends on the partition alone."""
        return part_name(self.partition)


def write_tokens(
    folder: Folder,
    tokens: pa.Table,
    partition: Partition,
    validation: npt.NDArray[np.bool_],
    *,
    fingerprint: str,
    label_column: str | None,
    domain_column: str | None,
) -> TokenPart:
    """Commit the tokens of one partition; cells without tokens are omitted.

    Args:
        folder: Folder of the file.
        tokens: TOKENS of the partition.
        partition: The planned partition.
        validation: bool [n], True for validation cells.
        fingerprint: Digest of what determines the tokens.
        label_column: Name of the obs column of labels, or None.
        domain_column: Name of the obs column of domains, or None.
    """
    offsets, _ = ragged(tokens[BIN])
    has_tokens = np.diff(offsets) > 0
    rows = np.flatnonzero(has_tokens & ~validation), np.flatnonzero(has_tokens & validation)
    train_cells, validation_cells = (tokens.take(pa.array(of_split)) for of_split in rows)
    part = TokenPart(
        fingerprint=fingerprint,
        partition=partition.number,
        joinids=partition.digest,
        n_train=len(train_cells),
        n_validation=len(validation_cells),
        n_tokens=int(offsets[-1]),
        labels=tally(train_cells, label_column),
        domains=tally(train_cells, domain_column),
    )
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, stamped(train_cells, _FOOTER, asdict(part)).schema, compression="zstd") as writer:
        for cells in (train_cells, validation_cells):
            writer.write_table(cells, row_group_size=max(1, cells.num_rows))
    folder.write(part.name, sink.getvalue())
    return part


def tally(table: pa.Table, column: str | None) -> dict[str, int]:
    """Number of cells per value of a column; cells of unknown value are not counted."""
    if column is None:
        return {}
    counted = pc.value_counts(known_texts(table[column]).drop_null())
    return {entry["values"].as_py(): entry["counts"].as_py() for entry in counted}


def read_tokens(folder: Folder, part: TokenPart, *, validation: bool, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the training cells of a token file, or its validation cells: those of the columns that exist, or all."""
    with folder.open(part.name) as stream:
        return pq.ParquetFile(stream).read_row_group(int(validation), columns)


def committed_tokens(folder: Folder, fingerprint: str) -> dict[int, TokenPart]:
    """The committed files with this fingerprint, by partition; torn files are ignored."""

    def read(name: str) -> TokenPart | None:
        found = read_stamp(folder, name, _FOOTER)
        if found is None:
            return None
        values, n_rows = found
        part = TokenPart(**values)
        is_whole = (part.name, part.n_train + part.n_validation) == (name, n_rows)
        return part if is_whole and part.fingerprint == fingerprint else None

    names = [name for name in folder.names() if name.startswith("part-")]
    return {part.partition: part for part in read_all(read, names)}
