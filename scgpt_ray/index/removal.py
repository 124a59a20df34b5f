"""Cells that are no longer part of an index although the files of its shards hold them.

Their soma_joinids are in a file of the shard; its name has the digest of its content, so that a description that was
read before an update still finds its own. Search, labels and counts leave these cells out.
"""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.records import ShardDescription
from scgpt_ray.schema import JOINID, Int64Array
from scgpt_ray.storage import Folder

_DIGITS = 12


def removed_ids(folder: Folder, shard: ShardDescription) -> Int64Array:
    """The soma_joinids that a shard holds and that are no longer part of the index, sorted."""
    if shard.removed is None:
        return np.empty(0, np.int64)
    ids_N: Int64Array = np.load(io.BytesIO(folder.read(shard.removed)), allow_pickle=False)
    return ids_N


def left_ids(folder: Folder, shard: ShardDescription) -> Int64Array:
    """The soma_joinids of a shard that are part of the index, sorted."""
    ids_N = np.load(io.BytesIO(folder.read(shard.ids)), allow_pickle=False)
    return np.setdiff1d(ids_N, removed_ids(folder, shard), assume_unique=True)


def left_of(folder: Folder, shard: ShardDescription, labels: pa.Table) -> pa.Table:
    """Rows of a table of labels whose cells are part of the index; it has soma_joinid where some are not."""
    if shard.removed is None:
        return labels
    return labels.filter(pc.invert(pc.is_in(labels[JOINID], value_set=pa.array(removed_ids(folder, shard)))))


def keep_only(folder: Folder, shard: ShardDescription, kept_N: Int64Array) -> ShardDescription:
    """Take the cells of a shard out of the index but for some; what was taken out before stays so.

    Args:
        folder: The index folder.
        shard: The shard.
        kept_N: int64 [n], soma_joinids; others than those of the shard may be among them.

    Returns:
        The shard as the description of the index must have it for the cells to be gone.
    """
    gone_N = np.setdiff1d(left_ids(folder, shard), kept_N, assume_unique=True)
    if not len(gone_N):
        return shard
    content = io.BytesIO()
    np.save(content, np.union1d(removed_ids(folder, shard), gone_N))
    digest = hashlib.sha256(content.getvalue()).hexdigest()[:_DIGITS]
    name = shard.name.replace("shard", "removed").replace(".faiss", f"-{digest}.npy")
    folder.write(name, content.getvalue())
    return replace(shard, removed=name, n_removed=shard.n_removed + len(gone_N))
