"""Tokens kept for training: a Parquet file per partition, whole or absent.

Its first row group has the cells to learn from, its second those kept out, so that either is read alone.
"""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.parts.footer import read_all, read_stamp, stamped
from scgpt_ray.parts.parts import part_name
from scgpt_ray.schema import BIN, NO_LABEL, ragged
from scgpt_ray.storage import Folder

_FOOTER = b"scgpt_ray.tokens"


@dataclass(frozen=True)
class TokenPart:
    """What the footer of a file of tokens says.

    Attributes:
        fingerprint: Digest of what made the tokens.
        partition: Number of the partition.
        joinids: Digest of the planned joinids.
        n_train: Cells to learn from.
        n_validation: Cells kept out.
        n_tokens: Of all of them.
        labels: Label -> cells to learn from that have it.
        domains: Likewise.
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
        """File name, from the partition alone."""
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
    """Commit the tokens of one partition; cells without any are left away.

    Args:
        folder: Where to.
        tokens: TOKENS of the partition.
        partition: What was planned.
        validation: bool [n], cells that are not to be learnt from.
        fingerprint: Digest of what made the tokens.
        label_column: Name of the obs column of labels, if there is one.
        domain_column: Name of the obs column of domains, if there is one.
    """
    offsets, _ = ragged(tokens[BIN])
    shown = np.diff(offsets) > 0
    of_training, of_validation = np.flatnonzero(shown & ~validation), np.flatnonzero(shown & validation)
    to_learn, to_evaluate = (tokens.take(pa.array(rows)) for rows in (of_training, of_validation))
    part = TokenPart(
        fingerprint=fingerprint,
        partition=partition.number,
        joinids=partition.digest,
        n_train=len(of_training),
        n_validation=len(of_validation),
        n_tokens=int(offsets[-1]),
        labels=tally(to_learn, label_column),
        domains=tally(to_learn, domain_column),
    )
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, stamped(to_learn, _FOOTER, asdict(part)).schema, compression="zstd") as writer:
        for cells in (to_learn, to_evaluate):
            writer.write_table(cells, row_group_size=max(1, cells.num_rows))
    folder.write(part.name, sink.getvalue())
    return part


def tally(table: pa.Table, column: str | None) -> dict[str, int]:
    """Cells by what a column says of them; without those of which it says nothing."""
    if column is None:
        return {}
    counted = pc.value_counts(known(table[column]).drop_null())
    return {entry["values"].as_py(): entry["counts"].as_py() for entry in counted}


def known(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as text, null where they say nothing."""
    texts = values.cast(pa.string())
    unknown = pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(texts)), value_set=pa.array(sorted(NO_LABEL)))
    return pc.if_else(unknown, pa.scalar(None, pa.string()), texts)


def read_tokens(folder: Folder, part: TokenPart, *, validation: bool) -> pa.Table:
    """The cells of a part to learn from, or those kept out."""
    with folder.open(part.name) as stream:
        return pq.ParquetFile(stream).read_row_group(int(validation))


def committed_tokens(folder: Folder, fingerprint: str) -> dict[int, TokenPart]:
    """The files there are of this fingerprint, by partition; torn files and those of another are not."""

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
