"""External embeddings: a Parquet file with an id and a vector per cell, rows in any order.

The id is `soma_joinid` (integer) or `obs_id` (text). The vector is a list column `embedding`; without such a column, it
consists of all other columns, which must be floats. Float64 is read as float32.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.schema import EMBEDDING, JOINID, OBS_ID, Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

SUFFIX = ".parquet"
"""Suffix of such a file; all other paths are output folders of `embed`."""

_IDS = {JOINID: pa.int64(), OBS_ID: pa.large_string()}
_ROWS_AT_ONCE = 8192


def external_vectors(place: str, cells: pa.Table) -> Float32Matrix:
    """Read the vectors of some cells; those of other cells are not kept in memory.

    Cells are matched by soma_joinid, or by obs_id if the file has no soma_joinid. If it has both, the obs_id must agree
    too.

    Args:
        place: Path or URI of the file.
        cells: n rows with soma_joinid, and obs_id if the cells have one.

    Returns:
        float32 [n, d].

    Raises:
        ReferenceSetError: If the file cannot be read, lacks a cell, has it twice or with another obs_id, or if a vector
            is null, not finite, or of another length than the first.
    """
    place = Folder.at(place).uri
    folder, _, name = place.rpartition("/")
    try:
        with Folder(folder).open(name) as stream:
            file = pq.ParquetFile(stream)
            ids, columns = _columns(file.schema_arrow, place)
            theirs = file.read(ids).cast(pa.schema([(column, _IDS[column]) for column in ids])).to_pandas()
            ours = cells.select([column for column in _IDS if column in cells.column_names]).to_pandas()
            found = _take(file, _rows(theirs, ours, place), columns)
        return _vectors(found, ours[ids[0]], place)
    except (OSError, pa.ArrowException) as error:
        raise _refused(f"{place} cannot be read: {type(error).__name__}: {error}") from error


def _columns(schema: pa.Schema, place: str) -> tuple[list[str], list[str]]:
    """Id columns of a file, and columns of the vector."""
    ids = [name for name in _IDS if name in schema.names]
    if not ids:
        raise _refused(f"{place} has neither {JOINID} nor {OBS_ID}")
    columns = [EMBEDDING] if EMBEDDING in schema.names else [name for name in schema.names if name not in ids]
    if not columns:
        raise _refused(f"{place} has no vector")
    for name in columns:
        kind = schema.field(name).type
        if name != EMBEDDING and not pa.types.is_floating(kind):
            raise _refused(f"{place} has a column {name} of type {kind}, and no column {EMBEDDING}")
    return ids, columns


def _rows(theirs: pd.DataFrame, ours: pd.DataFrame, place: str) -> Int64Array:
    """Row in the file of each of our cells, matched by the first id column of the file."""
    key = theirs.columns[0]
    keys = pd.Index(theirs[key])
    if key not in ours:
        raise _refused(f"{place} names cells by {key}, which the first set does not have")
    for named, values in ((place, keys), ("the first set", pd.Index(ours[key]))):
        if values.has_duplicates:
            raise _refused(f"{named} has {key} {values[values.duplicated()][0]} in several rows")
    rows = keys.get_indexer(ours[key])
    missing = ours[key][rows < 0]
    if len(missing):
        raise _refused(f"{place} lacks {len(missing):,} of {len(ours):,} cells, such as {key} {missing.iloc[0]}")
    if OBS_ID in theirs and OBS_ID in ours:
        names, own = theirs[OBS_ID].to_numpy()[rows], ours[OBS_ID].to_numpy()
        for other in np.flatnonzero(names != own):
            cell = f"{key} {ours[key].iloc[other]}"
            raise _refused(f"{place} has {cell} as {names[other]}, and the first set as {own[other]}")
    return np.asarray(rows, np.int64)


def _take(file: pq.ParquetFile, rows: Int64Array, columns: list[str]) -> pa.Table:
    """Rows of a file in the given order; reads a few thousand rows at a time."""
    order = np.argsort(rows)
    ascending, found, start = rows[order], [], 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
        first, last = np.searchsorted(ascending, (start, start + batch.num_rows))
        found.append(batch.take(pa.array(ascending[first:last] - start)))
        start += batch.num_rows
    return pa.Table.from_batches(found).take(pa.array(np.argsort(order)))


def _vectors(found: pa.Table, ids: pd.Series, place: str) -> Float32Matrix:
    """Validated vectors of the cells in a table."""

    def require(good_N: npt.NDArray[np.bool_], problem: str) -> None:
        if not good_N.all():
            raise _refused(f"{place}: the cell with {ids.name} {ids.iloc[int(np.argmin(good_N))]} {problem}")

    if found.column_names == [EMBEDDING]:
        length_N = pc.fill_null(pc.list_value_length(found[EMBEDDING]), 0).to_numpy()
        require(
            np.asarray(length_N == max(1, length_N[0]), bool), "has no vector, or one of another length than the first"
        )
        vectors_ND = _float32(pc.list_flatten(found[EMBEDDING])).reshape(len(found), -1)
    else:
        vectors_ND = np.column_stack([_float32(column) for column in found.columns])
    require(np.asarray(np.isfinite(vectors_ND).all(axis=1)), "has a number that is null, NaN or infinite")
    return vectors_ND


def _float32(values: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Values as float32; null becomes NaN, values out of range become infinite."""
    return np.asarray(values.cast(pa.float32(), safe=False).to_numpy(), np.float32)


def _refused(found: str) -> ReferenceSetError:
    return ReferenceSetError(
        found,
        expected=f"each evaluated cell once, by {JOINID} or {OBS_ID}, with a vector of finite numbers, all of one "
        f"length: {EMBEDDING} (lists of floats), or a column of floats for each dimension",
        remedy="correct the file, or embed only the cells that it has",
    )
