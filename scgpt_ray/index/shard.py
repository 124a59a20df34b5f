"""Shards of an index. Each is a plain faiss file with the ids, vectors and labels of its rows in files next to it.

    shard-00000.faiss     the index; its ids are row numbers 0, 1, ...
    ids-00000.npy         int64 [n], soma_joinid of each row, ascending
    vectors-00000.npy     float16 [n, d], each vector minus centre.npy; absent if the index is exact
    labels-00000.parquet  soma_joinid and label columns of each row
    shard-00000.json      the commit marker, written last: digest of the request, sizes of the files

The centre is subtracted before rounding to half precision because embeddings lie close to it: rounding the vectors
themselves loses 1.7 % of the true ten neighbours (of the cells described in `factory`), rounding the differences 0.1 %.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import numpy.typing as npt

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index.factory import reason
from scgpt_ray.index.gpu import ToGpus, assigning
from scgpt_ray.index.search import one_thread
from scgpt_ray.index.template import open_template, without_table
from scgpt_ray.records import CommitMarker, ShardDescription
from scgpt_ray.schema import Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

HALF = np.dtype("<f2")
_BLOCK_ROWS = 16_384


def build_shard(
    template: bytes,
    blocks: Iterable[tuple[Int64Array, Float32Matrix]],
    folder: Folder,
    shard: ShardDescription,
    centre_D: Float32Matrix,
    *,
    to_gpus: ToGpus | None = None,
) -> int:
    """Add vectors to a copy of the template and write it with its ids and vectors; reads the blocks once.

    Args:
        template: The result of `train`.
        blocks: Pairs of ids int64 [n], ascending over all blocks, and L2-normalised vectors float32 [n, d]; may be
            empty.
        folder: The index folder.
        shard: Names of the files.
        centre_D: float32 [d], subtracted from vectors before they are rounded to half precision.
        to_gpus: Finds the lists of vectors on GPUs (`gpu.gpus`).

    Returns:
        Number of vectors.
    """
    index = open_template(template)
    ids: list[Int64Array] = [np.empty(0, np.int64)]
    even = _evenly(blocks, index.d)
    with one_thread(), assigning(index, to_gpus):
        if shard.vectors is None:
            ids += [_add(index, *block) for block in even]
        else:
            with folder.staged(shard.vectors) as path, path.open("wb") as stream:
                _write_header(stream, 0, index.d)
                for ids_N, vectors_ND in even:
                    ids.append(_add(index, ids_N, vectors_ND))
                    stream.write((vectors_ND - centre_D).astype(HALF).tobytes())
                stream.seek(0)
                _write_header(stream, index.ntotal, index.d)
    ids_N = np.concatenate(ids)
    assert (np.diff(ids_N) > 0).all(), "rows are in the order of their soma_joinids"
    with folder.staged(shard.ids) as path, path.open("wb") as stream:
        np.save(stream, ids_N)
    with folder.staged(shard.name) as path:
        faiss.write_index(index, str(path))
    return len(ids_N)


def _evenly(blocks: Iterable[tuple[Int64Array, Float32Matrix]], d: int) -> Iterator[tuple[Int64Array, Float32Matrix]]:
    """The same rows in blocks of equal size, except the last.

    Rounding in a matrix product depends on the position of an entry (see `search`), so codes would otherwise depend on
    how the embeddings are divided into parts.
    """
    ids_N, vectors_ND = np.empty(0, np.int64), np.empty((0, d), np.float32)
    for more_ids, more_vectors in blocks:
        assert more_vectors.shape == (len(more_ids), d), (more_vectors.shape, len(more_ids), d)
        ids_N, vectors_ND = np.concatenate([ids_N, more_ids]), np.concatenate([vectors_ND, more_vectors])
        while len(ids_N) >= _BLOCK_ROWS:
            yield ids_N[:_BLOCK_ROWS], vectors_ND[:_BLOCK_ROWS]
            ids_N, vectors_ND = ids_N[_BLOCK_ROWS:], vectors_ND[_BLOCK_ROWS:]
    if len(ids_N):
        yield ids_N, vectors_ND


def _add(index: faiss.Index, ids_N: Int64Array, vectors_ND: Float32Matrix) -> Int64Array:
    """Add vectors and return their ids."""
    index.add(vectors_ND)
    return ids_N


def _write_header(stream: BinaryIO, n: int, d: int) -> None:
    """Write a .npy header; numpy pads it, so that it can be overwritten once n is known."""
    np.lib.format.write_array_header_1_0(stream, {"descr": HALF.str, "fortran_order": False, "shape": (n, d)})


def open_faiss(source: str | Path | bytes) -> faiss.Index:
    """Open a faiss file for searching.

    Args:
        source: A local path, whose codes are memory-mapped (those of fast scan are read into memory); or the content
            of a file.

    Raises:
        ReferenceSetError: If it cannot be read or is no faiss index.
    """
    if isinstance(source, bytes):
        return open_template(source)
    try:
        return without_table(faiss.read_index(str(source), faiss.IO_FLAG_MMAP_IFC))
    except RuntimeError as error:
        raise _unreadable(source, reason(error)) from None


def open_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Memory-map a .npy file.

    Raises:
        ReferenceSetError: If it cannot be read or has another dtype or shape.
    """
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, " ".join(str(error).split())) from None
    if array.dtype != dtype or array.shape != shape:
        raise _unreadable(path, f"it holds {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
    return array


def _unreadable(place: str | Path, why: str) -> ReferenceSetError:
    return ReferenceSetError(
        f"{place} cannot be read: {why}", expected="a complete file of an index", remedy="build the index again"
    )


def commit_shard(folder: Folder, shard: ShardDescription, request: str) -> None:
    """Commit a shard: write its marker with the digest of the request and the sizes of its files."""
    sizes = {name: size for name in shard.files if (size := folder.size(name)) is not None}
    assert len(sizes) == len(shard.files), "a shard is committed after its files are written"
    folder.write(shard.marker, CommitMarker(request=request, shard=shard, bytes=sizes).to_json())


def committed_shard(folder: Folder, number: int, request: str) -> ShardDescription | None:
    """The shard of this number if an earlier run committed it for the same request and its files are complete."""
    name = ShardDescription.of(number, 0, is_exact=True).marker
    if not folder.has(name):
        return None
    try:
        marker = CommitMarker.from_json(folder.read(name), folder.where(name))
    except ReferenceSetError:  # incomplete, or of another version: the shard is built again
        return None
    is_complete = marker.bytes == {file: folder.size(file) for file in marker.shard.files}
    return marker.shard if is_complete and marker.request == request else None


def require_files(folder: Folder, shards: Iterable[ShardDescription]) -> None:
    """Require, by their sizes, that the files of committed shards are complete.

    Raises:
        ReferenceSetError: If not.
    """
    for shard in shards:
        marker = shard.marker
        sizes = CommitMarker.from_json(folder.read(marker), marker).bytes if folder.has(marker) else {marker: 1}
        for name, size in sizes.items():
            found = folder.size(name)
            if found != size:
                raise ReferenceSetError(
                    f"{folder.where(name)} is missing" if found is None else f"{folder.where(name)} has {found} bytes",
                    expected=f"a file of {size} bytes, as it was committed",
                    remedy=f"scgpt-ray validate --index {folder.uri} --repair makes it again",
                )
