"""Vectors of earlier embeddings, found by the digests of their cells' contents.

A cell's embedding is a function of its content, so that equal digests mean equal vectors wherever the cells are stored.
The table of digests has 16 bytes per cell; it is sorted once, and workers map it into memory.
"""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.identity import digest_of
from scgpt_ray.parts.parts import PARTS, read_part
from scgpt_ray.records import Manifest
from scgpt_ray.schema import CONTENT, EMBEDDING, Float32Matrix, matrix
from scgpt_ray.storage import Folder

TABLE = "earlier.npy"
_ROW_BITS = np.uint64(32)
_KEPT = 8  # parts in the memory of a worker

UInt64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class EarlierVectors:
    """Where to find them.

    Attributes:
        source: Folder of the earlier embeddings.
        names: Names of their parts.
        dimension: Width of the vectors.
        place: Folder of the table of digests.
        digest: Of the data of the parts; a worker that outlives a run caches the table under it.
    """

    source: Folder
    names: tuple[str, ...]
    dimension: int
    place: Folder
    digest: str

    @classmethod
    def of(cls, source: Folder, manifest: Manifest, place: Folder) -> "EarlierVectors":
        """Describe finished embeddings; `write_table` makes the table."""
        return cls(source, tuple(manifest.parts), manifest.dimension, place, digest_of(manifest.digests))

    def write_table(self) -> None:
        """Write the table: uint64 [2, n], sorted digests, and part << 32 | row of each; of equal cells the first."""
        digests, places = [], []
        for number, name in enumerate(self.names):
            content_N = read_part(self.source.folder(PARTS), name, [CONTENT])[CONTENT].to_numpy()
            digests.append(content_N)
            places.append(np.uint64(number) << _ROW_BITS | np.arange(len(content_N), dtype=np.uint64))
        unique, first = np.unique(np.concatenate(digests), return_index=True)
        table = np.stack([unique, np.concatenate(places)[first]])
        with self.place.staged(TABLE) as path, path.open("wb") as stream:
            np.save(stream, table[:, unique > 0])  # 0 is no digest: a cell without tokens

    def vectors(self, content_N: UInt64Array) -> tuple[npt.NDArray[np.bool_], Float32Matrix]:
        """Which cells are there, bool [n], and the vectors of these, float32 [found, d].

        Raises:
            ReferenceSetError: If the earlier embeddings have changed since the table was made.
        """
        table = _table(self)
        place_N = np.searchsorted(table[0], content_N)
        found_N = place_N < table.shape[1]
        found_N[found_N] = table[0, place_N[found_N]] == content_N[found_N]
        place_F, content_F = table[1, place_N[found_N]], content_N[found_N]
        vectors_FD = np.empty((len(place_F), self.dimension), np.float32)
        part_F, row_F = place_F >> _ROW_BITS, place_F & np.uint64(2**32 - 1)
        for number in np.unique(part_F):
            here = part_F == number
            contents, vectors = _part(self, int(number))
            if not np.array_equal(contents[row_F[here]], content_F[here]):
                raise ReferenceSetError(
                    f"{self.source.where(PARTS)}/{self.names[number]} has changed since this run started",
                    expected="the same embeddings until the end",
                    remedy="restore them, or start again in a new output folder",
                )
            vectors_FD[here] = vectors[row_F[here]]
        return found_N, vectors_FD


@lru_cache(maxsize=1)
def _table(earlier: EarlierVectors) -> UInt64Array:
    if earlier.place.is_local:
        return np.load(earlier.place.path / TABLE, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    return np.load(io.BytesIO(earlier.place.read(TABLE)), allow_pickle=False)  # type: ignore[no-any-return]


@lru_cache(maxsize=_KEPT)
def _part(earlier: EarlierVectors, number: int) -> tuple[UInt64Array, Float32Matrix]:
    """Digests [n] and vectors [n, d] of a part; zeros for a cell without tokens."""
    table = read_part(earlier.source.folder(PARTS), earlier.names[number], [CONTENT, EMBEDDING])
    vectors_ND = np.zeros((len(table), earlier.dimension), np.float32)
    has_vector = pc.is_valid(table[EMBEDDING]).to_numpy()
    vectors_ND[has_vector] = matrix(table[EMBEDDING].drop_null())
    return table[CONTENT].to_numpy(), vectors_ND
