"""Embeddings as an .h5ad file, written table by table, so that memory does not grow with the number of cells.

The columns of obs are read twice: once to learn their categories, and once to write them. The layout is that of AnnData
(anndata.readthedocs.io, "On-disk format"); anndata itself writes the empty file into which the rows go.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import anndata
import h5py
import numpy as np
import pyarrow as pa
from anndata.io import write_elem

from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, OBS_ID, dense_vectors, obs_columns

OBSM_KEY = "X_scGPT"
"""Key of obsm under which upstream scGPT stores cell embeddings."""

_MOST_CATEGORIES = 2**16
"""Distinct texts above which a column is stored as text: names of cells are no categories."""

_TEXT = h5py.string_dtype()

_MARK = "scgpt_ray"
"""Attribute of the root; anndata ignores it, and leaves it out of what it writes."""

Tables = Callable[[bool], Iterable[pa.Table]]
"""Reads EMBEDDINGS part by part: with vectors, or all columns but these."""


@dataclass
class _Column:
    """A column of obs; complete once all of it was read.

    Attributes:
        kind: Type of its values.
        has_nulls: Whether a value is missing.
        codes: Distinct text -> code, in order of appearance; None for too many.
    """

    kind: pa.DataType
    has_nulls: bool = False
    codes: dict[str, int] | None = field(default_factory=dict)

    def learn(self, values: pa.ChunkedArray) -> None:
        """Read values for the first time."""
        self.has_nulls |= values.null_count > 0
        if self.codes is None or _is_number(self.kind):
            return
        for text in _text(values).unique().drop_null().to_pylist():
            self.codes.setdefault(text, len(self.codes))
        if len(self.codes) > _MOST_CATEGORIES:
            self.codes = None

    @property
    def is_number(self) -> bool:
        """Whether it is stored as numbers or booleans."""
        return _is_number(self.kind) or (pa.types.is_boolean(self.kind) and not self.has_nulls)

    def create(self, obs: h5py.Group, name: str, n_cells: int) -> None:
        """Make the place for its values."""
        if self.is_number:
            is_widened = self.has_nulls and pa.types.is_integer(self.kind)  # as pandas does
            _create(obs, name, (n_cells,), np.float64 if is_widened else self.kind.to_pandas_dtype())
        elif self.codes is not None:
            group = _group(obs, name, "categorical", "0.2.0", ordered=False)
            write_elem(group, "categories", np.array([*self.codes], object))
            _create(group, "codes", (n_cells,), np.min_scalar_type(-max(1, len(self.codes))))
        elif self.has_nulls:
            group = _group(obs, name, "nullable-string-array", "0.1.0")
            _create(group, "values", (n_cells,), _TEXT)
            _create(group, "mask", (n_cells,), np.bool_)
        else:
            _create(obs, name, (n_cells,), _TEXT)

    def write(self, stored: h5py.Group | h5py.Dataset, rows: slice, values: pa.ChunkedArray) -> None:
        """Write the values of some rows."""
        if self.is_number:
            stored[rows] = values.to_numpy()
        elif self.codes is not None:
            encoded = _text(values).combine_chunks().dictionary_encode()
            codes = np.array([*(self.codes[text] for text in encoded.dictionary.to_pylist()), -1])
            stored["codes"][rows] = codes[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        elif self.has_nulls:
            stored["values"][rows] = _text(values).fill_null("").to_numpy()
            stored["mask"][rows] = values.is_null().to_numpy()
        else:
            stored[rows] = _text(values).to_numpy()


def write_embedding_h5ad(path: Path, tables: Tables, *, half: bool = False) -> int:
    """Write an .h5ad file with obs and obsm["X_scGPT"], without X.

    Numbers are stored unchanged, and booleans unless one is null. Other columns become categories in order of
    appearance, or text if they have more than 65,536 distinct values. Names of obs are `obs_id` if there is such a
    column, else soma_joinid. Cells without an embedding get rows of NaN.

    Args:
        path: File to write.
        tables: EMBEDDINGS: one or more tables with the same columns, in the same order each time.
        half: Store vectors as float16 instead of float32.

    Returns:
        Number of cells.

    Raises:
        OSError: If the file cannot be written.
    """
    columns, n_cells = _learned(tables(False))
    anndata.AnnData().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file.attrs[_MARK] = "export"
        del file["obs"]
        named = [name for name in columns if name != OBS_ID]
        order = np.array([*(name for name in named if name not in (JOINID, N_GENES)), JOINID, N_GENES], object)
        obs = _group(file, "obs", "dataframe", "0.2.0", _index="_index", **{"column-order": order})
        _create(obs, "_index", (n_cells,), _TEXT)
        for name in named:
            columns[name].create(obs, name, n_cells)
        start = 0
        for table in tables(True):
            if OBSM_KEY not in file["obsm"]:
                shape = (n_cells, table[EMBEDDING].type.list_size)
                _create(file["obsm"], OBSM_KEY, shape, np.float16 if half else np.float32)
            rows = slice(start, start + table.num_rows)
            obs["_index"][rows] = _text(table[OBS_ID if OBS_ID in columns else JOINID]).to_numpy()
            for name in named:
                columns[name].write(obs[name], rows, table[name])
            file["obsm"][OBSM_KEY][rows] = dense_vectors(table[EMBEDDING])
            start = rows.stop
        assert start == n_cells, f"{start} cells were written after {n_cells} were counted"
    return n_cells


def is_embedding_h5ad(stream: BinaryIO) -> bool:
    """Whether a file is one of `write_embedding_h5ad`, not what anndata made of it."""
    try:
        with h5py.File(stream, "r") as file:
            return bool(file.attrs.get(_MARK) == "export")
    except OSError:  # no HDF5, or half of it
        return False


def _learned(tables: Iterable[pa.Table]) -> tuple[dict[str, _Column], int]:
    """The columns of obs, and the number of cells."""
    columns: dict[str, _Column] = {}
    n_cells = 0
    for table in tables:
        for name in (*obs_columns(table), JOINID, N_GENES):
            kind = table[name].type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            column = columns.setdefault(name, _Column(kind, codes=None if name == OBS_ID else {}))
            column.learn(table[name])
        n_cells += table.num_rows
    return columns, n_cells


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.cast(pa.string())


def _group(parent: h5py.Group, name: str, kind: str, version: str, **attributes: Any) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs.update({"encoding-type": kind, "encoding-version": version, **attributes})
    return group


def _create(parent: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    array = parent.create_dataset(name, shape, dtype)
    kind = "string-array" if dtype is _TEXT else "array"
    array.attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})
