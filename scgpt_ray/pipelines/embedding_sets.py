"""One or several sets of embeddings of the same cells; vectors are read for the evaluated cells only."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.evaluation.sample import numbered
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS, iterate_parts, read_part, read_rows
from scgpt_ray.pipelines.external_embeddings import SUFFIX, external_vectors
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, OBS_ID, Float32Matrix, Int64Array, matrix
from scgpt_ray.storage import Folder


@dataclass(frozen=True, eq=False)
class ComparedCells:
    """All cells of several sets of embeddings.

    Attributes:
        folder: Output folder of the first set.
        sets: Short name -> function that reads vectors, float32 [n, d], given the ascending rows of cells, int64 [n];
            all of these cells must have an embedding.
        column_names: soma_joinid, n_genes, obs_id if the first set has it, and the requested columns.
        present: Whether each cell has an embedding, bool [n].
        numbered: Function that reads a column of all cells as `evaluation.sample.numbered` numbers them, int32 [n].
        table: Function that reads the columns of some cells from the first set, given their ascending rows.
    """

    folder: Folder
    sets: Mapping[str, Callable[[Int64Array], Float32Matrix]]
    column_names: list[str]
    present: npt.NDArray[np.bool_]
    numbered: Callable[[str], npt.NDArray[np.int32]]
    table: Callable[[Int64Array], pa.Table]


def compared_cells(places: tuple[str, ...], columns: list[str], optional: tuple[str, ...] = ()) -> ComparedCells:
    """Open sets of embeddings of the same cells.

    Args:
        places: Output folders of `embed`; after the first also Parquet files of external embeddings, which are not
            opened before their vectors are read.
        columns: obs columns to read from the first set.
        optional: obs columns to read if the first set carries them.

    Raises:
        ReferenceSetError: If a folder holds no finished run, or other cells than the first.
        ConfigError: If the first place is a file, or the first set lacks a column.
    """
    if places[0].endswith(SUFFIX):
        raise ConfigError(
            f"--embeddings names the file {places[0]} first",
            expected="an output folder of embed first: its cells are evaluated",
            remedy="put one before it",
        )
    names = short_names([Folder.at(place).uri for place in places])
    first = _EmbeddedSet.at(places[0])
    carried = [column for column in optional if column in first.manifest.obs_columns]
    asked = list(dict.fromkeys([JOINID, N_GENES, *first.ids, *columns, *carried]))
    first.require(asked)
    table = partial(read_rows, first.folder, first.manifest, columns=asked)
    sets: dict[str, Callable[[Int64Array], Float32Matrix]] = {names[0]: first.vectors}
    for name, place in zip(names[1:], places[1:], strict=True):
        if place.endswith(SUFFIX):
            sets[name] = partial(_external_vectors, place, table)
        else:
            sets[name] = _same_cells(_EmbeddedSet.at(place), first).vectors
    return ComparedCells(first.folder, sets, asked, first.present(), first.numbered, table)


def _external_vectors(place: str, table: Callable[[Int64Array], pa.Table], rows: Int64Array) -> Float32Matrix:
    return external_vectors(place, table(rows))


@dataclass(frozen=True)
class _EmbeddedSet:
    """Output of a finished `embed`."""

    folder: Folder
    manifest: Manifest

    @classmethod
    def at(cls, place: str) -> "_EmbeddedSet":
        folder = Folder.at(place)
        return cls(folder, require_manifest(folder))

    @property
    def ids(self) -> list[str]:
        """The obs_id column, if there is one."""
        return [OBS_ID] if OBS_ID in next(self._tables(None)).column_names else []

    def require(self, names: Iterable[str]) -> None:
        """Require that the embeddings carry obs columns.

        Raises:
            ConfigError: If they lack one.
        """
        carried = [N_GENES, *self.manifest.obs_columns]
        lacking = [name for name in names if name not in (JOINID, OBS_ID, *carried)]
        if lacking:
            raise ConfigError(
                f"{self.folder.uri} carries no column {', '.join(lacking)}",
                expected=f"one of {', '.join(carried)}",
                remedy="embed the cells again with it among --obs-columns",
            )

    def present(self) -> npt.NDArray[np.bool_]:
        """Whether each cell has an embedding."""
        return np.concatenate([table[N_GENES].to_numpy() > 0 for table in self._tables([N_GENES])])

    def numbered(self, column: str) -> npt.NDArray[np.int32]:
        """A column of all cells as numbers; its values are held once each."""
        codes: dict[Any, int] = {}
        found = []
        for table in self._tables([column]):
            encoded = table[column].combine_chunks()
            encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
            values = [value if value == value else None for value in encoded.dictionary.to_pylist()]
            code_of = np.array([*(codes.setdefault(value, len(codes)) for value in values), -1], np.int32)
            found.append(code_of[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)])
        place_of, _ = numbered(list(codes))
        return np.asarray(np.append(place_of, -1).astype(np.int32)[np.concatenate(found)])

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        """Column -> digest of its values in all cells, however they are divided into parts."""
        digests = {name: hashlib.sha256() for name in names}
        for table in self._tables(list(names)):
            for name, digest in digests.items():
                values = table[name]
                if pa.types.is_integer(values.type):
                    digest.update(values.to_numpy().tobytes())
                else:
                    digest.update("".join(f"{text!r}," for text in values.to_pylist()).encode())
        return {name: digest.hexdigest() for name, digest in digests.items()}

    def vectors(self, rows: Int64Array) -> Float32Matrix:
        """Embeddings of some rows, ascending; read part by part."""
        found, start = [], 0
        for name, n_cells in self.manifest.parts.items():
            first, last = np.searchsorted(rows, (start, start + n_cells))
            if first < last:
                whole = read_part(self.folder.folder(PARTS), name, [EMBEDDING])[EMBEDDING]
                found.append(np.asarray(matrix(whole.take(pa.array(rows[first:last] - start))), np.float32))
            start += n_cells
        return np.concatenate(found)

    def _tables(self, columns: list[str] | None) -> Any:
        return iterate_parts(self.folder.folder(PARTS), list(self.manifest.parts), columns)


def _same_cells(other: _EmbeddedSet, first: _EmbeddedSet) -> _EmbeddedSet:
    """Check that another set holds the same cells as the first."""
    names = [JOINID, N_GENES, *([OBS_ID] if first.ids and other.ids else [])]
    ours, theirs = first.digests(names), other.digests(names)
    for column in names:
        if ours[column] != theirs[column]:
            raise ReferenceSetError(
                f"{other.folder.uri} holds other cells than {first.folder.uri}: {other.manifest.n_cells:,} against "
                f"{first.manifest.n_cells:,}, and {column} differs",
                expected="embeddings of the same cells with the same vocabulary",
                remedy="embed the same atlas with the same --obs-filter",
            )
    return other


def short_names(uris: list[str]) -> list[str]:
    """Shortest names that differ: as many trailing folders of each path as needed.

    Raises:
        ConfigError: If two paths are the same.
    """
    if len(set(uris)) != len(uris):
        raise ConfigError(
            f"--embeddings names {next(uri for uri in uris if uris.count(uri) > 1)} twice",
            expected="different folders",
            remedy="remove one",
        )
    depths = (["/".join(uri.split("/")[-depth:]) for uri in uris] for depth in count(1))
    return next(names for names in depths if len(set(names)) == len(uris))
