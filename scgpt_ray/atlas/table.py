"""Assembling CELLS from obs columns and gene lists, and the errors that all sources share."""

from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.ragged import blocks
from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import COUNT, GENE, JOINID

_NO_LISTS = pa.schema([(GENE, pa.list_(pa.int32())), (COUNT, pa.list_(pa.float32()))]).empty_table()


def obs_blocks(obs: pa.Table) -> list[pa.Table]:
    """Split obs columns, sorted by joinid, at tile boundaries; an empty list without cells."""
    lengths = [len(joinids) for joinids in blocks(obs[JOINID].to_numpy())]
    return [obs.slice(end - length, length) for end, length in zip(np.cumsum(lengths), lengths, strict=True)]


def cells_block(obs: pa.Table, lists: pa.Table) -> pa.Table:
    """Append the gene and count lists of a block to its obs columns: CELLS, without copying."""
    assert lists.num_rows == obs.num_rows
    return obs.append_column(GENE, lists[GENE]).append_column(COUNT, lists[COUNT])


def concatenated(obs: pa.Table, cells: Iterable[pa.Table]) -> pa.Table:
    """Concatenate blocks of CELLS; without blocks, an empty table with the columns of `obs`."""
    return pa.concat_tables([cells_block(obs.slice(0, 0), _NO_LISTS), *cells])


def plain_columns(table: pa.Table) -> pa.Table:
    """Replace dictionaries by their values, and large strings by strings, so that all parts have one schema."""
    fields = [(field.name, _plain_type(field.type)) for field in table.schema]
    return pa.table([table[name].cast(kind) for name, kind in fields], schema=pa.schema(fields))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_large_string(plain) else plain


def refuse_missing(columns: Sequence[str], present: Iterable[str], where: str) -> None:
    """Require obs columns.

    Raises:
        AtlasError: If one is missing; the message lists the columns of obs.
    """
    present = list(present)
    missing = [column for column in columns if column not in present]
    if missing:
        raise AtlasError(
            f"{where}: obs has no column {', '.join(missing)}",
            expected=f"columns of {', '.join(present)}",
            remedy="correct the column names",
        )


def not_counts(cell: str, gene: str | None, column: int, value: float) -> NoReturn:
    """Raise the error for a value that is not a count.

    Args:
        cell: The atlas and the cell, as the start of the message.
        gene: Name of the gene; None for a column of the matrix without a row in var.
        column: The var joinid.
        value: The value.
    """
    if gene is None:
        raise AtlasError(
            f"{cell} has the value {value:g} in column {column}, which has no row in var",
            expected="a row of var for each column of the matrix",
            remedy="rewrite the atlas",
        )
    found = "NaN" if np.isnan(value) else f"{value:g}"
    raise AtlasError(
        f"{cell} has {found} for gene {gene}",
        expected="finite counts >= 0",
        remedy="use raw counts or log1p values, such as --layer raw",
    )
