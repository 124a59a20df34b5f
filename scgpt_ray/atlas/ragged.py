"""From stored counts as coordinates to ragged lists.

Every source returns its matrix as parts of (row, column, value), in any order: TileDB reads tile by tile, unordered,
and a CSR or dense block expands to the same three arrays. A counting sort in two linear passes makes one list per
cell; the same passes translate genes to tokens, select rows and check values.

Shape suffixes: E stored entries, R rows of the range read, N selected cells, V var rows by joinid.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.errors import DamagedError
from scgpt_ray.schema import COUNT, GENE, Int64Array, one_type, ragged_array

logger = logging.getLogger(__name__)

TILE = 2048
"""Rows per block: the tile size of the Census, and small enough for the scatter to stay in the CPU cache."""

_FEW = 32
"""Cells near a damaged one that may be left out of a sum."""

Int32Array: TypeAlias = npt.NDArray[np.int32]
Float64Array: TypeAlias = npt.NDArray[np.float64]

Part: TypeAlias = tuple[Int64Array, Int64Array, npt.NDArray[np.float32]]
"""Row joinids int64 [E], var joinids int64 [E], values float32 [E]."""

Refuse: TypeAlias = Callable[[int, int, float], NoReturn]
"""Raises the error for the value at (row joinid, var joinid), naming both."""


def blocks(joinids: Int64Array, tile: int = TILE) -> list[Int64Array]:
    """Split sorted joinids at tile boundaries."""
    if not len(joinids):
        return []
    return np.split(joinids, np.flatnonzero(np.diff(joinids // tile)) + 1)


def add_readable(add: Callable[[Int64Array], None], pieces: Sequence[Int64Array], check: Callable[[], None]) -> int:
    """Call `add` with the joinids of each block; of a damaged one, with those parts that can be read.

    Args:
        add: Reads cells and adds them to a sum.
        pieces: Joinids of each block.
        check: Raises an error if the damage is not that of some cells.

    Returns:
        Number of cells that could be read.

    Raises:
        DamagedError: If none could.
    """
    n_cells, damaged, todo = 0, None, list(reversed(pieces))
    while todo:
        joinids = todo.pop()
        try:
            add(joinids)
            n_cells += len(joinids)
        except DamagedError as error:
            check()
            damaged = error
            if len(joinids) > _FEW:
                todo += np.array_split(joinids, 2)[::-1]
            else:
                logger.warning("cells %d to %d are not in the gene coverage: %s", joinids[0], joinids[-1], error.found)
    if damaged is not None and not n_cells:
        raise damaged
    return n_cells


def as_part(rows: npt.NDArray[np.integer], columns: npt.NDArray[np.integer], values: npt.NDArray[np.generic]) -> Part:
    """Convert coordinates to the dtypes of a part; values beyond float32 become infinite, which is refused later."""
    with np.errstate(over="ignore"):
        counts = one_type(values, np.float32)
    return one_type(rows, np.int64), one_type(columns, np.int64), counts


def gather(parts: Sequence[Part], joinids: Int64Array, gene_tokens: Int32Array, refuse: Refuse) -> pa.Table:
    """Gather the entries of each selected cell into one list.

    Args:
        parts: Entries of at least these rows; entries of other rows are ignored.
        joinids: Sorted unique row joinids [N], at least one.
        gene_tokens: Token of each var joinid, int32 [V]; entries with -1 and stored zeros are dropped.
        refuse: Called for the first value that is not finite and >= 0, or whose column is not in var.

    Returns:
        Columns gene list<int32> and count list<float>, one row per joinid. Entries of a cell are in the order of the
        parts; a token repeats where several var rows with counts have it.
    """
    row_map_R, gene_tokens = _row_map(joinids), one_type(gene_tokens, np.int32)
    first = int(joinids[0])
    stored_N = np.zeros(len(joinids), np.int64)
    for row_E, _, _ in parts:
        _count_stored(row_E, first, row_map_R, stored_N)
    # Allocate for every stored entry: counting then needs only the rows, and few entries are dropped later.
    starts = _boundaries(stored_N)
    assert starts[-1] < 2**31, "a block is small enough for int32 offsets"
    gene_E, count_E = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    next_N = starts[:-1].copy()
    for part in parts:
        _raise_fault(_scatter(*part, first, row_map_R, gene_tokens, next_N, gene_E, count_E), part, refuse)
    offsets = _boundaries(next_N - starts[:-1])
    if offsets[-1] < starts[-1]:
        _close_gaps(starts, offsets, gene_E, count_E)
    kept = slice(0, offsets[-1])
    return pa.table({GENE: ragged_array(offsets, gene_E[kept]), COUNT: ragged_array(offsets, count_E[kept])})


def add_totals(parts: Sequence[Part], joinids: Int64Array, totals_V: Float64Array, refuse: Refuse) -> None:
    """Add the counts of the selected cells to the totals of their genes, in place.

    Args:
        parts: As for `gather`.
        joinids: As for `gather`.
        totals_V: Sum of counts by var joinid, float64 [V].
        refuse: As for `gather`.
    """
    row_map_R = _row_map(joinids)
    for part in parts:
        _raise_fault(_add(*part, int(joinids[0]), row_map_R, totals_V), part, refuse)


def _row_map(joinids: Int64Array) -> Int32Array:
    row_map_R = np.full(int(joinids[-1] - joinids[0]) + 1, -1, np.int32)
    row_map_R[joinids - joinids[0]] = np.arange(len(joinids), dtype=np.int32)
    return row_map_R


def _boundaries(lengths_N: Int64Array) -> Int64Array:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_N)])


def _raise_fault(entry: int, part: Part, refuse: Refuse) -> None:
    if entry >= 0:
        rows, columns, values = part
        refuse(int(rows[entry]), int(columns[entry]), float(values[entry]))


# An index cast to uint64 needs one bounds check instead of two, and numba omits its handling of negative indices.
# Passing arrays to a helper function would cost a reference count per entry.


@numba.njit(nogil=True, cache=True)
def _count_stored(row_E: Int64Array, first: int, row_map_R: Int32Array, stored_N: Int64Array) -> None:
    n_rows = np.uint64(row_map_R.size)
    entry = 0
    while entry < row_E.size:
        # Entries of a row come in runs (the columns of a tile). One addition per entry would make each wait for the
        # store of the one before.
        joinid, start = row_E[entry], entry
        while entry < row_E.size and row_E[entry] == joinid:
            entry += 1
        offset = np.uint64(joinid - first)
        if offset < n_rows and row_map_R[offset] >= 0:
            stored_N[row_map_R[offset]] += entry - start


@numba.njit(nogil=True, cache=True)
def _scatter(
    row_E: Int64Array,
    column_E: Int64Array,
    value_E: npt.NDArray[np.float32],
    first: int,
    row_map_R: Int32Array,
    gene_tokens: Int32Array,
    next_N: Int64Array,
    gene_out: Int32Array,
    count_out: npt.NDArray[np.float32],
) -> int:
    n_rows, n_columns = np.uint64(row_map_R.size), np.uint64(gene_tokens.size)
    for entry in range(row_E.size):
        offset, column = np.uint64(row_E[entry] - first), np.uint64(column_E[entry])
        if offset >= n_rows or row_map_R[offset] < 0:
            continue
        value = value_E[entry]
        if not 0 <= value < np.inf or column >= n_columns:
            return entry
        row, token = np.uint64(row_map_R[offset]), gene_tokens[column]
        # No branch, because it would be unpredictable: the next entry overwrites one that is dropped.
        place = np.uint64(next_N[row])
        gene_out[place] = token
        count_out[place] = value
        next_N[row] += (value > 0) & (token >= 0)
    return -1


@numba.njit(nogil=True, cache=True)
def _close_gaps(starts: Int64Array, offsets: Int64Array, gene_E: Int32Array, count_E: npt.NDArray[np.float32]) -> None:
    # In place: entries only move towards the front, over entries that have moved already.
    for row in range(starts.size - 1):
        gap = starts[row] - offsets[row]
        for place in range(offsets[row], offsets[row + 1]):
            gene_E[place] = gene_E[place + gap]
            count_E[place] = count_E[place + gap]


@numba.njit(nogil=True, cache=True)
def _add(
    row_E: Int64Array,
    column_E: Int64Array,
    value_E: npt.NDArray[np.float32],
    first: int,
    row_map_R: Int32Array,
    totals_V: Float64Array,
) -> int:
    n_rows, n_columns = np.uint64(row_map_R.size), np.uint64(totals_V.size)
    for entry in range(row_E.size):
        offset, column = np.uint64(row_E[entry] - first), np.uint64(column_E[entry])
        if offset >= n_rows or row_map_R[offset] < 0:
            continue
        value = value_E[entry]
        if not 0 <= value < np.inf or column >= n_columns:
            return entry
        totals_V[column] += value
    return -1
