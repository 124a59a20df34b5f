"""An opened shard: the ids, vectors and labels of its rows. Its codes are searched with those of others (`codes`)."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index.removal import removed_ids
from scgpt_ray.index.search import NONE, Mask, Neighbors, exact_search, no_neighbors, search
from scgpt_ray.index.shard import HALF, open_array, open_faiss
from scgpt_ray.records import ShardDescription
from scgpt_ray.schema import Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

_EXACT_BLOCK = 16_384


@dataclass(frozen=True)
class Shard:
    """An opened shard.

    Attributes:
        description: Names of its files.
        index: The faiss index if it is exact; else None.
        ids_N: int64 [n], soma_joinid of each row; memory-mapped.
        vectors_ND: float16 [n, d], vectors minus the centre; memory-mapped; None if the index is exact.
        centre_D: float32 [d].
        left_N: bool [n], rows that are part of the index; None if all are.
    """

    folder: Folder
    description: ShardDescription
    index: faiss.Index | None
    ids_N: Int64Array
    vectors_ND: npt.NDArray[np.float16] | None
    centre_D: Float32Matrix
    left_N: Mask | None = None

    @classmethod
    def open(cls, folder: Folder, description: ShardDescription, centre_D: Float32Matrix, cache: Path) -> "Shard":
        """Open the files of a shard, but for codes.

        Raises:
            ReferenceSetError: If one is missing, incomplete, or has another number of rows than the description says.
        """
        rows, index, vectors_ND = (description.n_cells,), None, None
        try:
            ids_N = open_array(folder.fetch(description.ids, cache), np.int64, rows)
            if description.vectors is None:
                index = open_codes(folder, description, cache)
            else:
                shape = (*rows, len(centre_D))
                vectors_ND = open_array(folder.fetch(description.vectors, cache), HALF, shape)
        except FileNotFoundError as error:
            raise _missing(error) from None
        left_N = None if description.removed is None else ~np.isin(ids_N, removed_ids(folder, description))
        return cls(folder, description, index, ids_N, vectors_ND, centre_D, left_N)

    @property
    def rows(self) -> Int64Array:
        """Rows that are part of the index, int64, ascending."""
        return np.arange(len(self.ids_N)) if self.left_N is None else np.flatnonzero(self.left_N)

    def rows_of(self, ids: Int64Array) -> Int64Array:
        """Rows of those of some cells that the shard holds and that are part of the index, int64 [some]."""
        if not len(self.ids_N):
            return np.empty(0, np.int64)
        row_of = np.minimum(np.searchsorted(self.ids_N, ids), len(self.ids_N) - 1)
        rows: Int64Array = row_of[self.ids_N[row_of] == ids]
        return rows if self.left_N is None else rows[self.left_N[rows]]

    def labels(self, columns: Sequence[str]) -> pa.Table:
        """Read label columns, one row per row of the shard."""
        with self.folder.open(self.description.labels) as stream:
            return pq.read_table(stream, columns=list(columns))

    def vectors(self, rows: Int64Array) -> Float32Matrix:
        """Vectors of some rows, float32 [some, d]; rounded to half precision unless the index is exact."""
        if self.index is not None:
            return np.asarray(self.index.reconstruct_batch(rows), np.float32)
        return decoded(self.halves(rows)) + self.centre_D

    def halves(self, rows: Int64Array) -> npt.NDArray[np.uint8]:
        """The bytes of vectors minus the centre in half precision, uint8 [some, 2 d]."""
        assert self.vectors_ND is not None, "an exact index has no differences"
        return np.asarray(self.vectors_ND).view(np.uint8).take(rows, axis=0)

    def expect(self, *, few: bool) -> None:
        """Tell the system whether few vectors will be read: then it does not read more than them from the disk."""
        file: object = None if self.vectors_ND is None else self.vectors_ND.base
        if isinstance(file, mmap.mmap):
            file.madvise(mmap.MADV_RANDOM if few else mmap.MADV_NORMAL)

    def left(self, allowed_N: Mask | None) -> Mask | None:
        """Those of some rows that are part of the index; None for all."""
        return allowed_N if self.left_N is None else self.left_N if allowed_N is None else allowed_N & self.left_N

    def among(self, queries_QD: Float32Matrix, k: int, allowed_N: Mask | None) -> Neighbors:
        """Exact search among the rows that a filter leaves; None for all that are part of the index."""
        left_N = self.left(allowed_N)
        if self.index is None:
            return self.exact(queries_QD, k, None if left_N is None else np.flatnonzero(left_N))
        if not len(self.ids_N) or (left_N is not None and not left_N.any()):
            return no_neighbors(len(queries_QD), k)
        rows_QK, scores_QK = search(self.index, queries_QD, k, 1, left_N)
        return np.where(rows_QK == NONE, NONE, np.asarray(self.ids_N)[np.maximum(rows_QK, 0)]), scores_QK

    def exact(self, queries_QD: Float32Matrix, k: int, rows: Int64Array | None = None) -> Neighbors:
        """Exact search among some rows, by their vectors; all that are part of the index if None."""
        rows = self.rows if rows is None else rows
        blocks = (rows[start : start + _EXACT_BLOCK] for start in range(0, len(rows), _EXACT_BLOCK))
        return exact_search(((self.ids_N[block], self.vectors(block)) for block in blocks), queries_QD, k)


def open_codes(folder: Folder, description: ShardDescription, cache: Path) -> faiss.Index:
    """Open the faiss index of a shard.

    Raises:
        ReferenceSetError: If it is missing, cannot be read, or has another number of rows than the description says.
    """
    try:
        index = open_faiss(folder.fetch(description.name, cache))
    except FileNotFoundError as error:
        raise _missing(error) from None
    if index.ntotal != description.n_cells:
        raise ReferenceSetError(
            f"{folder.where(description.name)} holds {index.ntotal} cells, not {description.n_cells}",
            expected="the file as it was built",
            remedy="build the index again",
        )
    return index


def _missing(error: FileNotFoundError) -> ReferenceSetError:
    return ReferenceSetError(
        f"{error.filename or error} is missing", expected="every file of the index", remedy="build it again"
    )


def decoded(halves_ND: npt.NDArray[np.uint8]) -> Float32Matrix:
    """Half precision as float32 [n, d]; the decoder of faiss gives what numpy's cast does in less time."""
    decoder: Any = faiss.ScalarQuantizer(halves_ND.shape[1] // 2, faiss.ScalarQuantizer.QT_fp16)
    return np.asarray(decoder.decode(halves_ND), np.float32)


def drawn_rows(shards: Sequence[ShardDescription], n: int, seed: int) -> list[Int64Array]:
    """Draw n cells of all shards uniformly, all if there are fewer: ascending places in `Shard.rows`, int64 [some]."""
    ends = np.cumsum([shard.n_left for shard in shards])
    drawn = np.sort(np.random.default_rng(seed).choice(ends[-1], min(n, ends[-1]), replace=False))
    cut = np.split(drawn, np.searchsorted(drawn, ends)[:-1])
    return [rows - (end - shard.n_left) for rows, end, shard in zip(cut, ends, shards, strict=True)]
