"""Assembling CELLS from obs columns and gene lists, and the errors that all sources share."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from scgpt_ray.atlas.matrix import Matrix
from scgpt_ray.atlas.ragged import Refuse, blocks, gather
from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import COUNT, GENE, JOINID


def obs_blocks(obs: pa.Table) -> list[pa.Table]:
    """Split obs columns, sorted by joinid, at tile boundaries; an empty list without cells."""
    lengths = [len(joinids) for joinids in blocks(obs[JOINID].to_numpy())]
    return [obs.slice(end - length, length) for end, length in zip(np.cumsum(lengths), lengths, strict=True)]


def cells_block(obs: pa.Table, lists: pa.Table) -> pa.Table:
    """Append the gene and count lists of a block to its obs columns: CELLS, without copying."""
    assert lists.num_rows == obs.num_rows
    return obs.append_column(GENE, lists[GENE]).append_column(COUNT, lists[COUNT])


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


def cells_in_blocks(
    matrix: Matrix, obs: pa.Table, gene_tokens: npt.NDArray[np.int32], refuse: Refuse
) -> Iterator[pa.Table]:
    """CELLS of sorted rows of a matrix, a block at a time."""

    def cells(block: pa.Table) -> pa.Table:
        joinids = block[JOINID].to_numpy()
        parts = matrix.parts(int(joinids[0]), int(joinids[-1]))
        return cells_block(block, gather(parts, joinids, gene_tokens, refuse))

    # map instead of a loop: loop variables would keep a block in memory while the next one is read.
    return map(cells, obs_blocks(obs))


def gene_name(names: pd.Index, column: int) -> str | None:
    """Name of the gene of a column; None for a column without a row in var."""
    return str(names[column]) if 0 <= column < len(names) else None


def not_counts(cell: str, gene: str | None, column: int, value: float, layers: Sequence[str] = ()) -> NoReturn:
    """Raise the error for a value that is not a count.

    Args:
        cell: The atlas and the cell, as the start of the message.
        gene: Name of the gene; None for a column of the matrix without a row in var.
        column: The var joinid.
        value: The value.
        layers: Names of the matrices that the atlas has.
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
        remedy="name a layer of raw counts or log1p values with --layer"
        + (f" (there are {', '.join(layers)})" if layers else ", such as --layer raw"),
    )
