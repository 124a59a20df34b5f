"""The cells of one or several sets of embeddings, of which only the evaluated ones are read whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS, iterate_parts, read_part
from scgpt_ray.parts.vector_file import SUFFIX
from scgpt_ray.pipelines.external_embeddings import GivenSet
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, OBS_ID, Float32Matrix, Int64Array, matrix
from scgpt_ray.storage import Folder


@dataclass(frozen=True)
class EmbeddedSet:
    """Output of a finished `embed`.

    Attributes:
        name: Short, and of no other set that it is compared with.
        folder: Where it is.
        manifest: What it holds.
    """

    name: str
    folder: Folder
    manifest: Manifest

    def columns(self, names: Iterable[str]) -> pa.Table:
        """Columns of all cells, without the embedding.

        Raises:
            ConfigError: If a column was not carried along.
        """
        carried = [N_GENES, *self.manifest.obs_columns]
        lacking = [name for name in names if name not in (JOINID, OBS_ID, *carried)]
        if lacking:
            raise ConfigError(
                f"{self.folder.uri} carries no column {', '.join(lacking)}",
                expected=f"one of {', '.join(carried)}",
                remedy="embed the cells again with it among --obs-columns",
            )
        tables = self._tables(list(dict.fromkeys([JOINID, N_GENES, *names])))
        return pa.concat_tables([table.unify_dictionaries() for table in tables])

    def vectors(self, rows: Int64Array) -> Float32Matrix:
        """Embeddings of some cells.

        Args:
            rows: int64 [n], ascending places among all cells, none of them without an embedding.

        Returns:
            float32 [n, d].
        """
        found, start = [], 0
        for name, n_cells in self.manifest.parts.items():
            first, last = np.searchsorted(rows, (start, start + n_cells))
            if first < last:
                whole = read_part(self.folder.folder(PARTS), name, [EMBEDDING])[EMBEDDING]
                found.append(np.asarray(matrix(whole.take(pa.array(rows[first:last] - start))), np.float32))
            start += n_cells
        return np.concatenate(found)

    def has_names(self) -> bool:
        """Whether cells have names of their own."""
        return OBS_ID in next(self._tables(None)).column_names

    def _tables(self, columns: list[str] | None) -> Any:
        return iterate_parts(self.folder.folder(PARTS), list(self.manifest.parts), columns)


@dataclass(frozen=True, eq=False)
class ComparedCells:
    """Cells that several sets have in common, all of them.

    Attributes:
        folder: Output folder of the first set.
        sets: The embeddings.
        columns: soma_joinid, n_genes, the asked columns, and obs_id where there is one; of the first set.
    """

    folder: Folder
    sets: tuple[EmbeddedSet | GivenSet, ...]
    columns: pa.Table

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which cells have an embedding, bool [n]."""
        return np.asarray(self.columns[N_GENES].to_numpy() > 0)

    def values(self, column: str, rows: Int64Array | None = None) -> list[Any]:
        """Values of a column as Python objects, of all cells or of some."""
        whole = self.columns[column]
        values: list[Any] = (whole if rows is None else whole.take(pa.array(rows))).to_pylist()
        return values


def compared_cells(places: tuple[str, ...], columns: list[str]) -> ComparedCells:
    """Open sets of embeddings of the same cells.

    Args:
        places: Output folders of `embed`; beside the first also Parquet files of embeddings made elsewhere.
        columns: obs columns to read, of the first set.

    Raises:
        ReferenceSetError: If a folder is not that of a finished run, or has other cells than the first; or if a file
            cannot be used, or lacks cells of the first.
        ConfigError: If the first is a file, or carries no such column.
    """
    if places[0].endswith(SUFFIX):
        raise ConfigError(
            f"--embeddings names the file {places[0]} first",
            expected="an output folder of embed, whose cells are evaluated",
            remedy="name one before it",
        )
    names = short_names([Folder.at(place).uri for place in places])
    first = _embedded_set(names[0], places[0])
    cells = first.columns(dict.fromkeys([*([OBS_ID] if first.has_names() else []), *columns]))
    others = [
        GivenSet.joined(name, place, cells) if place.endswith(SUFFIX) else _same_cells(name, place, first, cells)
        for name, place in zip(names[1:], places[1:], strict=True)
    ]
    return ComparedCells(first.folder, (first, *others), cells)


def _embedded_set(name: str, place: str) -> EmbeddedSet:
    folder = Folder.at(place)
    return EmbeddedSet(name, folder, require_manifest(folder))


def _same_cells(name: str, place: str, first: EmbeddedSet, cells: pa.Table) -> EmbeddedSet:
    """One more set, of the same cells as the first."""
    other = _embedded_set(name, place)
    named = [OBS_ID] if OBS_ID in cells.column_names and other.has_names() else []
    theirs = other.columns(named)
    for column in (JOINID, N_GENES, *named):
        if not theirs[column].combine_chunks().equals(cells[column].combine_chunks()):
            raise ReferenceSetError(
                f"{other.folder.uri} holds other cells than {first.folder.uri}: {len(theirs):,} against "
                f"{len(cells):,}, and {column} differs",
                expected="embeddings of the same cells with the same vocabulary",
                remedy="embed the same atlas with the same --obs-filter",
            )
    return other


def short_names(uris: list[str]) -> list[str]:
    """The last folders of each path, as few as tell them apart.

    Raises:
        ConfigError: If two paths are the same.
    """
    if len(set(uris)) != len(uris):
        raise ConfigError(
            f"--embeddings names {next(uri for uri in uris if uris.count(uri) > 1)} twice",
            expected="different folders",
            remedy="leave one out",
        )
    return next(
        names
        for depth in count(1)
        if len(set(names := ["/".join(uri.split("/")[-depth:]) for uri in uris])) == len(uris)
    )
