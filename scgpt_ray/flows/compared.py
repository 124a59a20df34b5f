"""The cells of one or several sets of embeddings, of which only the judged ones are read whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.folder import Folder
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, OBS_ID, Float32Matrix, Int64Array, matrix
from scgpt_ray.store.manifest import Manifest, require_manifest
from scgpt_ray.store.parts import PARTS, iterate_parts


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
        for table in self._tables([EMBEDDING]):
            first, last = np.searchsorted(rows, (start, start + table.num_rows))
            found.append(np.asarray(matrix(table[EMBEDDING].take(pa.array(rows[first:last] - start))), np.float32))
            start += table.num_rows
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
        sets: The embeddings.
        columns: soma_joinid, n_genes, the asked columns, and obs_id where there is one; of the first set.
    """

    sets: tuple[EmbeddedSet, ...]
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
        places: Output folders of `embed`.
        columns: obs columns to read, of the first set.

    Raises:
        ReferenceSetError: If a folder is not that of a finished run, or has other cells than the first.
        ConfigError: If the first carries no such column.
    """
    folders = [Folder.at(place) for place in places]
    names = short_names([folder.uri for folder in folders])
    sets = tuple(
        EmbeddedSet(name, folder, require_manifest(folder)) for name, folder in zip(names, folders, strict=True)
    )
    named = [OBS_ID] if all(each.has_names() for each in sets) else []
    read = sets[0].columns(dict.fromkeys([*named, *columns]))
    for other in sets[1:]:
        theirs = other.columns(named)
        for column in (JOINID, N_GENES, *named):
            if not theirs[column].combine_chunks().equals(read[column].combine_chunks()):
                raise ReferenceSetError(
                    f"{other.folder.uri} holds other cells than {sets[0].folder.uri}: {len(theirs):,} against "
                    f"{len(read):,}, and {column} differs",
                    expected="embeddings of the same cells with the same vocabulary",
                    remedy="embed the same atlas with the same --obs-filter",
                )
    return ComparedCells(sets, read)


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
