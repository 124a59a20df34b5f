"""AnnData objects in memory: reading .h5ad files, and their cells as a source."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import scipy.sparse
from anndata import AnnData
from anndata._io.specs.registry import IORegistryError  # of a value it cannot write; it has no public name

from scgpt_ray.atlas.layers import RAW, X, choose_layer, no_layer
from scgpt_ray.atlas.matrix import DenseRows, Matrix, csr_rows
from scgpt_ray.atlas.plan import Partition
from scgpt_ray.atlas.ragged import add_totals, blocks
from scgpt_ray.atlas.table import cells_in_blocks, gene_name, not_counts
from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import JOINID, OBS_ID, Int64Array
from scgpt_ray.storage import Folder

NAME = "the AnnData"
"""What cells in memory are called in messages."""

_UNWRITTEN = re.compile(r"writing key '(?P<key>.*)' of <class .*> to /?(?P<place>.*)")
"""Note of anndata on errors."""


def read_anndata(path: Path) -> AnnData:
    """Read an .h5ad file into memory.

    Raises:
        AtlasError: If the file is missing, damaged or not an .h5ad file.
    """
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise AtlasError(
            f"{path}: {error}", expected="a complete .h5ad file", remedy="check the path, or copy the file again"
        ) from error


def stored(adata: AnnData, folder: Folder) -> str:
    """Write an AnnData as an .h5ad file, named by its content: the same cells are the same atlas.

    Returns:
        Path or URI of the file.

    Raises:
        AtlasError: If it holds what an .h5ad file cannot, such as a column of both text and numbers.
        OSError: If it cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "cells.h5ad"
        try:
            adata.write_h5ad(written, convert_strings_to_categoricals=False)
        except (TypeError, ValueError, IORegistryError) as error:
            raise _unwritable(error) from error
        with written.open("rb") as stream:
            name = f"cells-{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}.h5ad"
        if not folder.has(name):
            with folder.staged(name) as place:
                shutil.copyfile(written, place)
    return folder.where(name)


def _unwritable(error: Exception) -> AtlasError:
    noted = _UNWRITTEN.search(" ".join(getattr(error, "__notes__", ())))
    names = [name for name in (*noted["place"].split("/"), noted["key"]) if name] if noted else ["it"]
    return AtlasError(
        f"{NAME}: {names[0]}{''.join(f'[{name!r}]' for name in names[1:])} cannot be stored as .h5ad: {error}",
        expected="what adata.write_h5ad accepts, such as columns of one type",
        remedy="change it, such as a column of text and numbers by .astype(str), or leave it out",
    )


def write_ones(folder: Path, n: int, genes: list[str]) -> str:
    """Write an .h5ad file of n cells with a count of each gene; returns its path."""
    path = folder / "cells.h5ad"
    AnnData(np.ones((n, len(genes)), np.float32), var=pd.DataFrame(index=genes)).write_h5ad(path)
    return str(path)


@dataclass(frozen=True, eq=False)
class AnnDataCells:
    """All cells of an AnnData in memory, as `Cells`; the joinid of a cell is its row number.

    Attributes:
        adata: The cells.
        layer: `X`, `raw` for .raw, or the name of a layer.
    """

    adata: AnnData
    layer: str
    uri: str = NAME

    @classmethod
    def of(cls, adata: AnnData, layer: str | None) -> "AnnDataCells":
        """Find the counts of an AnnData.

        Args:
            adata: The cells.
            layer: Where the counts are; None for the layer that `choose_layer` finds.

        Raises:
            AtlasError: If the layer does not exist, its matrix has another shape, or the cells are not in memory.
        """
        if adata.isbacked:
            raise AtlasError(f"{NAME} is backed by a file", expected="cells in memory", remedy="give adata.to_memory()")
        cells = cls(adata, layer or choose_layer(NAME, existing_layers(adata), lambda name: _values(adata, name)))
        shape = (adata.n_obs, len(cells.var()))
        if fault := cells._matrix.fault(shape):
            raise AtlasError(
                f"{NAME}: {cells.layer}: {fault}", expected="a matrix of cells x genes", remedy="repair it"
            )
        return cells

    def var(self) -> pd.DataFrame:
        """The table var, one row per gene; that of .raw for the layer `raw`."""
        is_raw = self.layer == RAW and self.adata.raw is not None
        return pd.DataFrame(self.adata.raw.var if is_raw else self.adata.var)

    def joinids(self) -> Int64Array:
        """Row numbers of the cells.

        Raises:
            AtlasError: If there are no cells.
        """
        if not self.adata.n_obs:
            raise AtlasError(f"{NAME}: no cells", expected="at least one cell", remedy="give other cells")
        return np.arange(self.adata.n_obs, dtype=np.int64)

    def totals(self, joinids: Int64Array) -> tuple[npt.NDArray[np.float64], int]:
        """Sum the counts of each gene over these cells; this checks every value.

        Raises:
            AtlasError: If a value is not a count.
        """
        totals = np.zeros(len(self.var()))
        for ids in blocks(joinids):
            add_totals(self._matrix.parts(int(ids[0]), int(ids[-1])), ids, totals, self._refuse)
        return totals, len(joinids)

    def read(self, partition: Partition, gene_tokens: npt.NDArray[np.int32]) -> Iterator[pa.Table]:
        """Make CELLS of a partition, a block of rows at a time.

        Args:
            partition: Of the rows.
            gene_tokens: Token of each row of `var`, int32; -1 outside the vocabulary.

        Yields:
            soma_joinid (row number), obs_id (obs_names), gene, count; one row per cell.

        Raises:
            AtlasError: If a value is not a count.
        """
        rows = np.arange(partition.first, partition.last + 1, dtype=np.int64)
        names = self.adata.obs_names[rows].astype(str)
        obs = pa.table({JOINID: rows, OBS_ID: pa.array(names, pa.string())})
        yield from cells_in_blocks(self._matrix, obs, gene_tokens, self._refuse)

    @cached_property
    def _matrix(self) -> Matrix:
        values = _values(self.adata, self.layer)
        if values is None:
            raise no_layer(NAME, self.layer, existing_layers(self.adata))
        return csr_rows(values) if scipy.sparse.issparse(values) else DenseRows(np.asarray(values))

    def _refuse(self, row: int, column: int, value: float) -> NoReturn:
        cell = f"{NAME}: cell {self.adata.obs_names[row]}"
        not_counts(cell, gene_name(self.var().index, column), column, value, existing_layers(self.adata))


def existing_layers(adata: AnnData) -> Sequence[str]:
    """Names of the matrices of an AnnData."""
    has_raw = adata.raw is not None
    return [*([X] if adata.X is not None else []), *([RAW] if has_raw else []), *adata.layers]


def _values(adata: AnnData, layer: str) -> Any:
    if layer == X:
        return adata.X
    if layer == RAW and adata.raw is not None:
        return adata.raw.X
    return adata.layers.get(layer)


__all__ = ["NAME", "AnnData", "AnnDataCells", "existing_layers", "read_anndata", "stored"]
