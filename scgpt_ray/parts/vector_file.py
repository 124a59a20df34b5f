"""Embeddings that were made elsewhere: a Parquet file with an id and a vector per cell, in any order.

The id is `soma_joinid` (integer) or `obs_id` (text). The vector is a column `embedding` of lists of floats, beside
which other columns may stand; or, without such a column, all columns but the ids, each of floats. Float64 is read as
float32.

Shape suffixes: M rows, D dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.schema import EMBEDDING, JOINID, OBS_ID, Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

SUFFIX = ".parquet"
"""What tells such a file from an output folder of `embed`."""

_IDS = {JOINID: pa.int64(), OBS_ID: pa.large_string()}
_ROWS_AT_ONCE = 8192
_WRITE = "write the file anew"
_EXPECTED = f"{JOINID} (integer) or {OBS_ID} (text), and {EMBEDDING} (lists of floats) or a column of floats each"


@dataclass(frozen=True)
class VectorFile:
    """A Parquet file of vectors.

    Attributes:
        folder: Where it is.
        name: Of the file in it.
        ids: Which of soma_joinid and obs_id it has, in this order.
        columns: The column `embedding`, or those that together are the vector.
    """

    folder: Folder
    name: str
    ids: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def at(cls, place: str) -> "VectorFile":
        """Open a file by its path or URI.

        Raises:
            ReferenceSetError: If it is not there, cannot be read, or lacks an id or a vector.
        """
        parent, slash, name = place.rpartition("/")
        folder = Folder.at(parent + slash)
        if not folder.has(name):
            raise ReferenceSetError(
                f"{place}: no such file",
                expected="a Parquet file of embeddings",
                remedy="give its path to --embeddings",
            )
        try:
            with folder.open(name) as stream:
                schema = pq.read_schema(stream)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(place, error) from error
        problem = _problem(schema)
        if problem:
            raise ReferenceSetError(
                f"{place} has {problem}",
                expected=_EXPECTED,
                remedy=f"write it anew, other columns only beside a column {EMBEDDING}",
            )
        return cls(folder, name, tuple(column for column in _IDS if column in schema.names), _vector_columns(schema))

    @property
    def place(self) -> str:
        """The full path or URI."""
        return self.folder.where(self.name)

    def keys(self) -> pa.Table:
        """The ids of all rows, soma_joinid as int64 and obs_id as large_string.

        Raises:
            ReferenceSetError: If the first of them, by which cells are found, is null or that of two rows.
        """
        try:
            with self.folder.open(self.name) as stream:
                table = pq.read_table(stream, columns=list(self.ids))
            table = pa.table({column: table[column].cast(_IDS[column]) for column in self.ids})
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.place, error) from error
        key = self.ids[0]
        if table[key].null_count:
            raise self._wrong(f"{table[key].null_count:,} of {len(table):,} rows without {key}", f"{key} in every row")
        counts = table[key].value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(twice):
            raise self._wrong(f"{len(twice):,} {key} in several rows, such as {twice[0]}", f"each {key} once")
        return table

    def blocks(self, wanted: Int64Array) -> Iterator[Float32Matrix]:
        """Vectors of some rows, a few thousand at a time.

        Args:
            wanted: int64 [n], ascending numbers of rows.

        Yields:
            float32 [m, d]; n rows in all.

        Raises:
            ReferenceSetError: If one of them is null, has another length than the first, or is not finite.
        """
        start, width = 0, None
        for batch in self._batches():
            first, last = np.searchsorted(wanted, (start, start + batch.num_rows))
            if first < last:
                vectors_MD = self._vectors(batch.take(pa.array(wanted[first:last] - start)), width)
                width = vectors_MD.shape[1]
                yield vectors_MD
            start += batch.num_rows

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            with self.folder.open(self.name) as stream:
                yield from pq.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE, columns=[self.ids[0], *self.columns])
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.place, error) from error

    def _vectors(self, rows: pa.RecordBatch, width: int | None) -> Float32Matrix:
        """The vectors of some rows, all of a width where one is given."""
        if self.columns == (EMBEDDING,):
            length_M = np.asarray(pc.fill_null(pc.list_value_length(rows[EMBEDDING]), 0), np.int64)
            self._require_all(rows, length_M > 0, "has no vector")
            width = width or length_M[0]
            self._require_all(rows, length_M == width, f"has a vector of other than {width} numbers")
            vectors_MD = _float32(rows[EMBEDDING].flatten()).reshape(-1, width)
        else:
            vectors_MD = np.column_stack([_float32(rows[column]) for column in self.columns])
        self._require_all(
            rows, np.asarray(np.isfinite(vectors_MD).all(axis=1)), "has a number that is null, NaN or infinite"
        )
        return vectors_MD

    def _require_all(self, rows: pa.RecordBatch, good_M: npt.NDArray[np.bool_], problem: str) -> None:
        if good_M.all():
            return
        raise ReferenceSetError(
            f"{self.place}: the cell with {self.ids[0]} {rows[self.ids[0]][int(np.argmin(good_M))]} {problem}",
            expected="vectors of finite numbers, all of one length",
            remedy=_WRITE,
        )

    def _wrong(self, what: str, expected: str) -> ReferenceSetError:
        return ReferenceSetError(f"{self.place} has {what}", expected=expected, remedy=_WRITE)


def _vector_columns(schema: pa.Schema) -> tuple[str, ...]:
    return (EMBEDDING,) if EMBEDDING in schema.names else tuple(name for name in schema.names if name not in _IDS)


def _problem(schema: pa.Schema) -> str | None:
    """What is wrong with the columns, as the object of `has`."""
    ids = [name for name in schema.names if name in _IDS]
    columns = _vector_columns(schema)
    if not ids or not columns:
        return f"neither {JOINID} nor {OBS_ID}" if not ids else "no vector"
    for name in (*ids, *columns):
        kind = schema.field(name).type
        fits = {JOINID: pa.types.is_integer, OBS_ID: _is_text, EMBEDDING: _is_floats}.get(name, pa.types.is_floating)
        if not fits(kind):
            return f"a column {name} of type {kind}"
    return None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_floats(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _float32(values: pa.Array) -> npt.NDArray[np.float32]:
    """Floats with NaN for null, and infinity for what float32 cannot hold."""
    return np.asarray(values.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False), np.float32)


def _unreadable(place: str, error: Exception) -> ReferenceSetError:
    return ReferenceSetError(f"{place} cannot be read: {error}", expected="a Parquet file of embeddings", remedy=_WRITE)
