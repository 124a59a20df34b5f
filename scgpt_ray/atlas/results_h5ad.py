"""Results added to an .h5ad file in its place; all else in it stays as it is, and unread."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem

from scgpt_ray.schema import Float32Matrix


@dataclass(frozen=True, eq=False)
class ResultsH5ad:
    """An .h5ad file that is open for adding."""

    _file: h5py.File

    @classmethod
    @contextmanager
    def at(cls, path: Path) -> Iterator["ResultsH5ad"]:
        """Open a file of anndata 0.7 or newer."""
        with h5py.File(path, "r+") as file:
            yield cls(file)

    def has(self, place: str) -> bool:
        """Whether there is something, such as `obsm/X_umap`."""
        return place in self._file

    def noted(self, key: str) -> dict[str, Any]:
        """An entry of uns; empty without one."""
        return dict(read_elem(self._file[f"uns/{key}"])) if self.has(f"uns/{key}") else {}

    def note(self, key: str, values: Mapping[str, Any]) -> None:
        """Set an entry of uns."""
        self._write("uns", key, dict(values))

    def add_obs(self, columns: Mapping[str, pd.Series], replaced: Collection[str]) -> None:
        """Add columns of obs at the end.

        Args:
            columns: Name -> value of each cell.
            replaced: Columns to drop where they are there.
        """
        obs = self._file["obs"]
        for name in replaced:
            if name in obs:
                del obs[name]
        for name, values in columns.items():
            is_categorical = isinstance(values.dtype, pd.CategoricalDtype)
            self._write("obs", name, values.array if is_categorical else values.to_numpy())
        kept = [name for name in obs.attrs["column-order"] if name not in {*replaced, *columns}]
        obs.attrs["column-order"] = np.array([*kept, *columns], h5py.string_dtype())

    def set_obsm(self, key: str, blocks: Iterable[Float32Matrix], n_cells: int) -> None:
        """Set a matrix of obsm.

        Args:
            key: Its name.
            blocks: Its rows in order, one block in memory at a time; at least one block.
            n_cells: Number of all rows.
        """
        obsm, start = self._file.require_group("obsm"), 0
        for block_ND in blocks:
            if start == 0:
                self._write("obsm", key, block_ND[:0])
                attributes = dict(obsm[key].attrs)
                del obsm[key]
                obsm.create_dataset(key, (n_cells, block_ND.shape[1]), np.float32).attrs.update(attributes)
            obsm[key][start : start + len(block_ND)] = block_ND
            start += len(block_ND)
        assert start == n_cells, f"{start} rows of {n_cells} cells"

    def _write(self, group: str, name: str, values: Any) -> None:
        write_elem(self._file.require_group(group), name, values)
