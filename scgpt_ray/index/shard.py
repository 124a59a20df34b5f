"""The shards: pieces of an index, each a faiss file that any faiss program opens, with what belongs to its rows beside.

    shard-00000.faiss     the index; its ids are the numbers of its rows, 0, 1, ...
    ids-00000.npy         int64 [n], the soma_joinid of each row, ascending
    vectors-00000.npy     float16 [n, d], what each vector differs from centre.npy by; absent where the index is exact
    labels-00000.parquet  soma_joinid and label columns of each row
    shard-00000.json      the seal, written last: for which request, and how large the files are

Vectors are halved around their centre because the embeddings crowd there: 11 bits of the whole value lose 1.7 % of the
true ten neighbours in the cells of `factory`, 11 bits of the difference 0.1 %.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import numpy.typing as npt

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index.factory import reason
from scgpt_ray.index.gpu import Place, assigning
from scgpt_ray.index.search import one_thread
from scgpt_ray.index.template import open_template, without_table
from scgpt_ray.records import ShardDescription, ShardSeal
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
    place: Place | None = None,
) -> int:
    """Fill a copy of the template and write it, with its ids and vectors, reading the blocks once.

    Args:
        template: What `train` returned.
        blocks: Pairs of ids int64 [n], ascending throughout, and L2-normalised vectors float32 [n, d]; maybe none.
        folder: The index folder.
        shard: The names of the files.
        centre_D: float32 [d], around which vectors are halved.
        place: GPUs that find the lists, as `gpu.gpus` offers them.

    Returns:
        Number of vectors.
    """
    index = open_template(template)
    ids: list[Int64Array] = [np.empty(0, np.int64)]
    even = _evenly(blocks, index.d)
    with one_thread(), assigning(index, place):
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
    """The same rows in blocks of one size, but for the last.

    A matrix product rounds an entry by its place in the product (see `search`), and the codes would show how the
    embeddings were cut into parts.
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
    """Add vectors; gives back their ids."""
    index.add(vectors_ND)
    return ids_N


def _write_header(stream: BinaryIO, n: int, d: int) -> None:
    """The header of a .npy file; numpy leaves room in it for a first axis that grows."""
    np.lib.format.write_array_header_1_0(stream, {"descr": HALF.str, "fortran_order": False, "shape": (n, d)})


def open_faiss(source: str | Path | bytes) -> faiss.Index:
    """Open a faiss file for searching.

    Args:
        source: A local path, whose codes stay on the disk and are mapped into memory as they are read (those that fast
            scan keeps in blocks are read into memory); or the content of a file that lies elsewhere.

    Raises:
        ReferenceSetError: If it cannot be read, or is not a faiss index.
    """
    if isinstance(source, bytes):
        return open_template(source)
    try:
        return without_table(faiss.read_index(str(source), faiss.IO_FLAG_MMAP_IFC))
    except RuntimeError as error:
        raise _unreadable(source, reason(error)) from None


def open_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Map a .npy file into memory.

    Raises:
        ReferenceSetError: If it cannot be read, or is of another type or shape.
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
        f"{place} cannot be read: {why}", expected="a whole file of an index", remedy="build the index again"
    )


def seal(folder: Folder, shard: ShardDescription, request: str) -> None:
    """Commit a shard: say for which request it is, and how large its files are."""
    sizes = {name: size for name in shard.files if (size := folder.size(name)) is not None}
    assert len(sizes) == len(shard.files), "a shard is sealed when its files are there"
    folder.write(_seal_of(shard.name), ShardSeal(request=request, shard=shard, bytes=sizes).to_json())


def sealed(folder: Folder, number: int, request: str) -> ShardDescription | None:
    """The shard of this number, where an earlier run committed it for the same request and its files are whole."""
    name = _seal_of(ShardDescription.of(number, 0, is_exact=True).name)
    if not folder.has(name):
        return None
    try:
        seal = ShardSeal.from_json(folder.read(name), folder.where(name))
    except ReferenceSetError:  # torn, or not a seal of ours: built again
        return None
    is_whole = seal.bytes == {file: folder.size(file) for file in seal.shard.files}
    return seal.shard if is_whole and seal.request == request else None


def _seal_of(name: str) -> str:
    return name.removesuffix(".faiss") + ".json"
