"""Cells of .h5ad files."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import scipy.sparse
from anndata._io.specs.registry import IORegistryError  # of an encoding it does not know; it has no public name
from anndata.io import read_elem

from scgpt_ray.atlas.layers import RAW, X, choose_layer, no_layer
from scgpt_ray.atlas.matrix import CsrRows, DenseRows, Matrix, csr_rows
from scgpt_ray.atlas.obs_filter import parse
from scgpt_ray.atlas.plan import Partition
from scgpt_ray.atlas.ragged import add_readable, add_totals, blocks
from scgpt_ray.atlas.table import cells_in_blocks, gene_name, not_counts, plain_columns, refuse_missing
from scgpt_ray.errors import AtlasError, DamagedError, WorkerError
from scgpt_ray.object_store import ObjectStore, current
from scgpt_ray.schema import JOINID, OBS_ID, Int64Array
from scgpt_ray.storage import Folder

_WHOLE_BYTES = 2**29
"""Largest file that is read whole: 512 MiB, about 1.5 GiB in memory."""

_COPIED_BYTES = 2**34
"""Largest file that is copied, with memory that does not grow with it; a disk may lack the place for more."""

_COPIED_AT_ONCE = 2**24

_ENCODINGS = ("array", "csr_matrix", "csc_matrix")


@dataclass(frozen=True)
class H5adSource:
    """Cells of an .h5ad file: a locator that pickles, without an open handle.

    The joinid of a cell is its row number. obs is read once per process, and the requested columns are kept. CSR and
    dense matrices are read in blocks of rows. A CSC matrix is converted to CSR in memory, once per process: about 16
    bytes per stored value during the conversion, 8 afterwards.
    """

    uri: str
    """Absolute path or URI."""
    n_bytes: int
    mtime_ns: int
    layer: str
    """`X`, `raw` for .raw, or the name of a layer."""
    obs_filter: str | None
    obs_columns: tuple[str, ...]
    store: ObjectStore = field(default_factory=current)

    def with_counts(self) -> "H5adSource":
        """The same with the layer that `choose_layer` finds.

        Raises:
            AtlasError: If none can be found.
        """
        with self._opened() as file:
            found = choose_layer(self.uri, existing_layers(file), lambda name: _node(file, name, self.uri))
        return replace(self, layer=found)

    def check(self) -> None:
        """Require that the file can be read and has the layer and obs columns.

        Raises:
            AtlasError: If not; the message lists what the file has.
        """
        with self._opened() as file:
            matrix = self._matrix(file)
            fault = matrix.fault((len(_obs(self)[0]), len(self.var())))
        if fault:
            raise _unreadable(self.uri, f"{self.layer}: {fault}")

    def identity(self) -> dict[str, object]:
        """What determines the cells, as JSON values."""
        return {
            "kind": "h5ad",
            "uri": self.uri,
            "bytes": self.n_bytes,
            "mtime_ns": self.mtime_ns,
            "layer": self.layer,
            "obs_filter": self.obs_filter,
        }

    def var(self) -> pd.DataFrame:
        """The table var, one row per gene; that of .raw for the layer `raw`."""
        with self._opened() as file:
            return _frame(file, "raw/var" if self.layer == RAW else "var", self.uri)

    def joinids(self) -> Int64Array:
        """Sorted row numbers of the selected cells.

        Raises:
            AtlasError: If the filter is invalid or selects no cell.
        """
        _, found = _obs(self)
        if not len(found):
            raise AtlasError(
                f"{self.uri}: obs filter {self.obs_filter!r} selects no cell"
                if self.obs_filter
                else f"{self.uri}: no cells",
                expected="at least one cell",
                remedy="change --obs-filter",
            )
        return found

    def column(self, name: str) -> pa.ChunkedArray:
        """Values of one of the requested obs columns for the selected cells, in the order of joinids."""
        all_obs, selected = _obs(self)
        return plain_columns(all_obs.select([name]).take(selected))[name]

    def totals(self, joinids: Int64Array) -> tuple[npt.NDArray[np.float64], int]:
        """Sum the counts of each gene over all selected cells that can be read; this checks every value.

        Args:
            joinids: Sorted row numbers of the selected cells.

        Returns:
            Counts per var row, float64 [n_var], and the number of cells.

        Raises:
            AtlasError: If a value is not a count, or no cell can be read.
        """
        totals = np.zeros(len(self.var()))

        def add(ids: Int64Array) -> None:
            with self._opened() as file:
                add_totals(self._matrix(file).parts(int(ids[0]), int(ids[-1])), ids, totals, self._refuse)

        return totals, add_readable(add, blocks(joinids), self.check)

    def bytes_read(self, partitions: Sequence[Int64Array]) -> int:
        """Stored bytes of counts that a run of embed reads: twice those of the selected rows, since `totals` reads all.

        Args:
            partitions: Row numbers of the selected cells of each partition.
        """
        with self._opened() as file:
            node = _node(file, self.layer, self.uri)
            arrays = [node] if isinstance(node, h5py.Dataset) else [node[name] for name in ("data", "indices")]
            stored = sum(array.id.get_storage_size() for array in arrays)
            n_rows = len(_obs(self)[0])
        return int(2 * stored * sum(map(len, partitions)) / n_rows)

    def read(self, partition: Partition, gene_tokens: npt.NDArray[np.int32]) -> Iterator[pa.Table]:
        """Read the cells of a partition, a block of rows at a time.

        Args:
            partition: A partition of the plan.
            gene_tokens: Token of each var row, int32; -1 outside the vocabulary.

        Yields:
            CELLS: soma_joinid, obs_id (obs_names), the obs columns as plain types, gene, count; one row per planned
            cell, including cells without counts.

        Raises:
            AtlasError: If a value is not a count.
            WorkerError: If the file has changed since it was located.
        """
        all_obs, selected = _obs(self)
        first, last = np.searchsorted(selected, (partition.first, partition.last + 1))
        joinids = selected[first:last]
        partition.require(joinids, self.uri)
        obs = plain_columns(all_obs.take(joinids)).add_column(0, JOINID, pa.array(joinids))
        with self._opened() as file:
            yield from cells_in_blocks(self._matrix(file), obs, gene_tokens, self._refuse)

    def all_obs_columns(self) -> list[str]:
        """Names of all columns of obs."""
        with self._opened() as file:
            return [str(name) for name in file["obs"].attrs["column-order"]]

    def can_save(self, joinids: Int64Array) -> bool:
        """Whether `save` writes these rows: part of a file passes through memory, and a copy takes place on a disk."""
        return self.n_bytes <= _COPIED_BYTES and (self.n_bytes <= _WHOLE_BYTES or self._are_all(joinids))

    def save(self, joinids: Int64Array, path: Path) -> None:
        """Write an .h5ad file with all that this one has of some cells.

        Args:
            joinids: Sorted row numbers.
            path: File to write.
        """
        folder, name = Folder.of_file(self.uri)
        with self._opened():  # the file is unchanged
            if self._are_all(joinids):
                with folder.open(name) as stored, path.open("wb") as copy:
                    shutil.copyfileobj(stored, copy, _COPIED_AT_ONCE)
                return
            cells = anndata.read_h5ad(folder.path / name if folder.is_local else folder.open(name))[joinids]
        cells.write_h5ad(path)

    def _are_all(self, joinids: Int64Array) -> bool:
        return len(joinids) == len(_obs(self)[0])

    def _matrix(self, file: h5py.File) -> Matrix:
        node = _node(file, self.layer, self.uri)
        is_dense = isinstance(node, h5py.Dataset)
        encoding, values = ("array", node) if is_dense else (node.attrs["encoding-type"], node["data"])
        if encoding not in _ENCODINGS or values.dtype.kind not in "biuf":
            raise _unreadable(self.uri, f"{self.layer} is a {encoding} of {values.dtype}, not a matrix of numbers")
        if is_dense:
            return DenseRows(node)
        if encoding == "csc_matrix":
            return _converted(self)
        n_rows, n_columns = node.attrs["shape"]
        return CsrRows(node["indptr"], node["indices"], node["data"], (int(n_rows), int(n_columns)))

    def _refuse(self, row: int, column: int, value: float) -> NoReturn:
        cell = f"{self.uri}: cell {_obs(self)[0][OBS_ID][row].as_py()}"
        with self._opened() as file:
            layers = existing_layers(file)
        not_counts(cell, gene_name(self.var().index, column), column, value, layers)

    @contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        """Open the file after checking that it is unchanged; errors of HDF5 become AtlasError, DamagedError of data."""
        place, _, name = self.uri.rpartition("/")
        folder = Folder(place, self.store)
        state = folder.state(name)
        if state is None:
            raise WorkerError(f"{self.uri} does not exist on this machine")
        if state != (self.n_bytes, self.mtime_ns):
            raise WorkerError(f"{self.uri} changed during the run; start again in a new output folder")
        try:
            file = h5py.File(self.uri if folder.is_local else folder.open(name), "r")
        except OSError as error:
            raise _unreadable(self.uri, str(error)) from error
        with file:
            try:
                yield file
            except KeyError as error:
                raise _unreadable(self.uri, str(error)) from error
            except OSError as error:  # such as a chunk that does not inflate
                raise _unreadable(self.uri, str(error), DamagedError) from error


@lru_cache(maxsize=2)
def _obs(source: H5adSource) -> tuple[pa.Table, Int64Array]:
    """Columns of obs for all cells (obs_id first), and the row numbers of the selected cells; cached per process."""
    with source._opened() as file:
        frame = _frame(file, "obs", source.uri)
    refuse_missing(source.obs_columns, [OBS_ID, *frame.columns], source.uri)
    if OBS_ID in frame:
        _refuse_other_names(frame, source)
    try:
        columns = {str(name): pa.array(frame[name], from_pandas=True) for name in frame}
        names = pa.array(frame.index.astype(str), pa.string())
    except pa.ArrowException as error:
        raise _unreadable(source.uri, f"obs: {error}") from error
    table = pa.table({**columns, JOINID: np.arange(len(frame), dtype=np.int64), OBS_ID: names})
    selected: Int64Array = np.arange(len(frame), dtype=np.int64)
    if source.obs_filter:
        selected = np.flatnonzero(parse(source.obs_filter, table.schema, source.uri).mask(table))
    return table.select(list(dict.fromkeys([OBS_ID, *source.obs_columns]))), selected


def _refuse_other_names(frame: pd.DataFrame, source: H5adSource) -> None:
    is_used = OBS_ID in source.obs_columns or (source.obs_filter is not None and OBS_ID in source.obs_filter)
    if is_used and not (frame[OBS_ID].astype(str) == frame.index.astype(str)).all():
        raise AtlasError(
            f"{source.uri}: obs has a column {OBS_ID} that differs from obs_names",
            expected=f"{OBS_ID} equal to obs_names",
            remedy="rename the column",
        )


@lru_cache(maxsize=1)
def _converted(source: H5adSource) -> CsrRows:
    """A CSC matrix as CSR, in memory; cached per process."""
    with source._opened() as file:
        node = _node(file, source.layer, source.uri)
        shape = tuple(int(size) for size in node.attrs["shape"])
        compressed = (node["data"][:], node["indices"][:], node["indptr"][:])
    try:
        return csr_rows(scipy.sparse.csc_matrix(compressed, shape=shape))
    except ValueError as error:
        raise _unreadable(source.uri, f"{source.layer}: {error}") from error


def existing_layers(file: h5py.File) -> list[str]:
    """Names of the matrices of an .h5ad file."""
    layers = file["layers"].keys() if "layers" in file else []
    return [*([X] if "X" in file else []), *([RAW] if "raw/X" in file else []), *layers]


def _node(file: h5py.File, layer: str, path: str) -> Any:
    place = {X: "X", RAW: "raw/X"}.get(layer, f"layers/{layer}")
    if place not in file:
        raise no_layer(path, layer, existing_layers(file))
    return file[place]


def _frame(file: h5py.File, place: str, path: str) -> pd.DataFrame:
    if isinstance(file[place], h5py.Dataset):
        raise AtlasError(
            f"{path}: {place} is in the layout of anndata < 0.7",
            expected="a file written by anndata 0.7 or newer",
            remedy="rewrite it: anndata.read_h5ad(old).write_h5ad(new)",
        )
    try:
        frame = read_elem(file[place])
    except (ValueError, TypeError, IORegistryError) as error:
        raise _unreadable(path, f"{place}: {error}") from error
    if not isinstance(frame, pd.DataFrame):
        raise _unreadable(path, f"{place} is a {type(frame).__name__}")
    return frame


def _unreadable(path: str, found: str, kind: type[AtlasError] = AtlasError) -> AtlasError:
    return kind(f"{path}: {found}", expected="a complete .h5ad file", remedy="check the file with anndata.read_h5ad")
