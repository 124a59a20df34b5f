"""Neighbours on Ray: one task per shard, merged; and the exact twin, one task per part."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from scgpt_ray.folder import Folder
from scgpt_ray.index.description import ShardDescription
from scgpt_ray.index.search import NONE, Neighbors, exact_search, merge, search, set_threads
from scgpt_ray.index.shard import open_shard
from scgpt_ray.schema import JOINID, Float32Matrix, Int64Array
from scgpt_ray.store.parts import read_vectors


def index_neighbors(
    folder: Folder, shards: Sequence[ShardDescription], queries_QD: Float32Matrix, k: int, nprobe: int
) -> Neighbors:
    """The k nearest neighbours over all shards of an index.

    Returns:
        ids int64 [Q, k], -1 where there are no more; scores float32 [Q, k].
    """
    queries = ray.put(queries_QD)
    tasks = [_search_shard.remote(folder, shard.name, queries, k, nprobe) for shard in shards]
    return merge(ray.get(tasks), k)


def exact_neighbors(parts: Folder, names: Sequence[str], queries_QD: Float32Matrix, k: int) -> Neighbors:
    """The same by comparing with every vector of the parts."""
    queries = ray.put(queries_QD)
    return merge(ray.get([_search_part.remote(parts, name, queries, k) for name in names]), k)


def neighbor_labels(
    folder: Folder, shards: Sequence[ShardDescription], neighbor_ids_QK: Int64Array, columns: Sequence[str]
) -> pa.Table:
    """soma_joinid and label columns of the cells that are somebody's neighbour."""
    wanted = np.unique(neighbor_ids_QK)
    tasks = [_read_labels.remote(folder, shard.labels, wanted[wanted != NONE], list(columns)) for shard in shards]
    return pa.concat_tables([table.unify_dictionaries() for table in ray.get(tasks)])


def reference_labels(folder: Folder, shards: Sequence[ShardDescription], column: str) -> set[str]:
    """Every value that a label column has in an index, as text."""
    tasks = [_distinct_labels.remote(folder, shard.labels, column) for shard in shards]
    return set().union(*ray.get(tasks))


@ray.remote(num_cpus=1)
def _search_shard(folder: Folder, name: str, queries_QD: Float32Matrix, k: int, nprobe: int) -> Neighbors:
    set_threads(1)
    shard = open_shard(folder.path / name if folder.is_local else folder.read(name))
    return search(shard, queries_QD, k, nprobe)


@ray.remote(num_cpus=1)
def _search_part(parts: Folder, name: str, queries_QD: Float32Matrix, k: int) -> Neighbors:
    set_threads(1)
    return exact_search([read_vectors(parts, name)], queries_QD, k)


@ray.remote(num_cpus=0.5)
def _read_labels(folder: Folder, name: str, wanted: Int64Array, columns: list[str]) -> pa.Table:
    with folder.open(name) as stream:
        return pq.read_table(stream, columns=[JOINID, *columns], filters=pc.field(JOINID).isin(pa.array(wanted)))


@ray.remote(num_cpus=0.5)
def _distinct_labels(folder: Folder, name: str, column: str) -> set[str]:
    with folder.open(name) as stream:
        return set(pq.read_table(stream, columns=[column])[column].cast(pa.string()).unique().drop_null().to_pylist())
