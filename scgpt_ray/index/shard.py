"""The shards: pieces of an index, each a faiss file of its own that any faiss program opens."""

from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index.factory import behind_transforms, inverted_lists, reason
from scgpt_ray.index.template import open_template, transformed
from scgpt_ray.schema import Float32Matrix, Int64Array

_TILE_ROWS = 64


def build_shard(template: bytes, blocks: Iterable[tuple[Int64Array, Float32Matrix]]) -> bytes:
    """Fill a copy of the template.

    Args:
        template: What `train` returned.
        blocks: Pairs of ids int64 [n] and L2-normalised vectors float32 [n, d]; there may be none.

    Returns:
        The serialised shard.
    """
    index = open_template(template)
    for ids_N, vectors_ND in blocks:
        assert vectors_ND.shape == (len(ids_N), index.d), (vectors_ND.shape, len(ids_N), index.d)
        _add(index, np.ascontiguousarray(ids_N, np.int64), np.ascontiguousarray(vectors_ND, np.float32))
    return faiss.serialize_index(index).tobytes()


def _add(index: faiss.Index, ids_N: Int64Array, vectors_ND: Float32Matrix) -> None:
    """Add vectors so that a vector's code does not depend on the rows beside it.

    A matrix product rounds the last rows otherwise than the rest, unless they fill its tile; the bits that
    RaBitQ keeps behind a rotation would show it.
    """
    if not isinstance(index, faiss.IndexPreTransform):
        index.add_with_ids(vectors_ND, ids_N)
        return
    n = len(ids_N)
    whole_tiles_ND = np.pad(vectors_ND, ((0, -n % _TILE_ROWS), (0, 0)))
    behind = faiss.downcast_index(index.index)
    behind.add_with_ids(np.ascontiguousarray(transformed(index, whole_tiles_ND)[:n]), ids_N)
    index.ntotal = behind.ntotal


def open_shard(source: str | Path | bytes) -> faiss.Index:
    """Open a shard for searching.

    Args:
        source: A local path, whose codes stay on the disk and are mapped into memory as they are read; or the
            content of a file that lies elsewhere.

    Raises:
        ReferenceSetError: If it cannot be read, or is not a faiss index.
    """
    if isinstance(source, bytes):
        return open_template(source)
    try:
        return faiss.read_index(str(source), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise ReferenceSetError(
            f"{source} cannot be read: {reason(error)}",
            expected="a whole file that faiss wrote",
            remedy="build the index again",
        ) from None


def ids_of(index: faiss.Index) -> Int64Array:
    """The ids of all vectors of a shard, int64 [ntotal], in the order they are stored in."""
    kept_in = behind_transforms(index)
    if isinstance(kept_in, faiss.IndexIDMap):
        return np.asarray(faiss.vector_to_array(kept_in.id_map), np.int64)
    lists = inverted_lists(kept_in)
    assert lists is not None, "an index keeps its ids in a map or in inverted lists"
    inverted = lists.invlists
    assert inverted is not None
    sizes = [(number, inverted.list_size(number)) for number in range(lists.nlist)]
    # A copy, for the memory of the lists goes with the index.
    ids = [np.array(faiss.rev_swig_ptr(inverted.get_ids(number), size)) for number, size in sizes if size]
    return np.concatenate([np.empty(0, np.int64), *ids])
