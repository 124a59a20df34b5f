"""The CELLS table, put together the same way for every source, and the errors all sources share."""

from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np
import pyarrow as pa

from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import COUNT, GENE

_NO_LISTS = pa.schema([(GENE, pa.list_(pa.int32())), (COUNT, pa.list_(pa.float32()))]).empty_table()


def cells_table(obs: pa.Table, lists: Sequence[pa.Table]) -> pa.Table:
    """Set the ragged lists of consecutive blocks beside the obs columns of their cells, without copying.

    Args:
        obs: soma_joinid and obs columns of all cells.
        lists: gene and count of each block, in order of the cells; none for no cells.
    """
    ragged = pa.concat_tables([_NO_LISTS, *lists])
    assert ragged.num_rows == obs.num_rows
    return obs.append_column(GENE, ragged[GENE]).append_column(COUNT, ragged[COUNT])


def plain_columns(table: pa.Table) -> pa.Table:
    """Replace dictionaries by their values, and large strings by strings: one schema for all parts."""
    fields = [(field.name, _plain_type(field.type)) for field in table.schema]
    return pa.table([table[name].cast(kind) for name, kind in fields], schema=pa.schema(fields))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_large_string(plain) else plain


def refuse_missing(columns: Sequence[str], present: Iterable[str], where: str) -> None:
    """Require obs columns.

    Raises:
        AtlasError: With the columns that obs has.
    """
    present = list(present)
    missing = [column for column in columns if column not in present]
    if missing:
        raise AtlasError(
            f"{where}: obs has no column {', '.join(missing)}",
            expected=f"columns of {', '.join(present)}",
            remedy="correct --obs-columns",
        )


def not_counts(cell: str, gene: str | None, column: int, value: float) -> NoReturn:
    """Refuse a value that is not a count.

    Args:
        cell: The atlas and the cell, as the start of a sentence.
        gene: Name of the gene; None for a column of the matrix that var has no row for.
        column: The var joinid.
        value: What stands there.
    """
    if gene is None:
        raise AtlasError(
            f"{cell} has the value {value:g} in column {column}, which has no row in var",
            expected="a row of var for each column of the matrix",
            remedy="write the atlas anew",
        )
    found = "NaN" if np.isnan(value) else f"{value:g}"
    raise AtlasError(
        f"{cell} has {found} for gene {gene}",
        expected="finite counts >= 0",
        remedy="use raw counts or log1p values, such as --layer raw",
    )
