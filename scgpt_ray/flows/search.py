"""Neighbours on Ray: one task per shard, merged; their labels; and the exact twin, one task per part."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from scgpt_ray.flows.cluster import cpus_of_nodes
from scgpt_ray.folder import Folder
from scgpt_ray.index.description import IndexDescription, ShardDescription, require_index
from scgpt_ray.index.search import NONE, Neighbors, exact_search, merge, search, set_threads
from scgpt_ray.index.shard import open_shard
from scgpt_ray.mapping.transfer import exclude, group_codes
from scgpt_ray.schema import JOINID, Float32Matrix, Int64Array
from scgpt_ray.store.parts import read_vectors

logger = logging.getLogger(__name__)

_MAX_WIDTH = 2048
"""Most neighbours that a search for others than one's own group goes through."""


def index_neighbors(
    folder: Folder, shards: Sequence[ShardDescription], queries_QD: Float32Matrix, k: int, nprobe: int
) -> Neighbors:
    """The k nearest neighbours over all shards of an index.

    Returns:
        ids int64 [Q, k], -1 where there are no more; scores float32 [Q, k].
    """
    queries = ray.put(queries_QD)
    threads = _threads_of_shard(len(shards))
    search_shard = _search_shard.options(num_cpus=threads)
    tasks = [search_shard.remote(folder, shard.name, queries, k, nprobe, threads) for shard in shards]
    return merge(ray.get(tasks), k)


def exact_neighbors(parts: Folder, names: Sequence[str], queries_QD: Float32Matrix, k: int) -> Neighbors:
    """The same by comparing with every vector of the parts."""
    queries = ray.put(queries_QD)
    return merge(ray.get([_search_part.remote(parts, name, queries, k) for name in names]), k)


def _threads_of_shard(n_shards: int) -> int:
    """CPUs of one search task: few shards take the cluster between them."""
    cpus = cpus_of_nodes()
    return max(1, min(max(cpus), sum(cpus) // n_shards))


@dataclass(frozen=True)
class Reference:
    """A finished index that queries are mapped onto.

    Attributes:
        folder: Where it is.
        index: What it says about itself.
    """

    folder: Folder
    index: IndexDescription

    @classmethod
    def at(cls, place: str) -> "Reference":
        """Name the output folder of a finished `index`.

        Raises:
            ReferenceSetError: If it is none.
        """
        folder = Folder.at(place)
        return cls(folder, require_index(folder))

    def neighbors(self, queries_QD: Float32Matrix, k: int) -> Neighbors:
        """The k nearest neighbours, as `index_neighbors`."""
        return index_neighbors(self.folder, self.index.shards, queries_QD, k, self.index.nprobe)

    def labels(self, neighbor_ids_QK: Int64Array, columns: Sequence[str]) -> pa.Table:
        """soma_joinid and label columns of the cells that are somebody's neighbour."""
        ids = np.unique(neighbor_ids_QK)
        wanted = ray.put(ids[ids != NONE])
        tasks = [_read_labels.remote(self.folder, shard.labels, wanted, list(columns)) for shard in self.index.shards]
        return pa.concat_tables([table.unify_dictionaries() for table in ray.get(tasks)])

    def distinct_labels(self, column: str) -> set[str]:
        """Every value that a label column has, as text."""
        tasks = [_distinct_labels.remote(self.folder, shard.labels, column) for shard in self.index.shards]
        return set().union(*ray.get(tasks))


def foreign_neighbors(
    reference: Reference, queries_QD: Float32Matrix, own_Q: pa.ChunkedArray, column: str, k: int
) -> Neighbors:
    """The k nearest neighbours that do not share a query's own value of a column.

    The search widens for those queries that have fewer than k left.

    Args:
        reference: The index, with the column among its labels.
        queries_QD: float32 [Q, d].
        own_Q: The queries' own values; null is equal to none.
        column: Such as donor_id.
        k: Neighbours wanted.

    Returns:
        As `index_neighbors`.
    """
    ids_QK = np.full((len(queries_QD), k), NONE, np.int64)
    scores_QK = np.full((len(queries_QD), k), -np.inf, np.float32)
    short = np.arange(len(queries_QD))
    for width in _widths(k, reference.index.n_cells):
        ids, scores = reference.neighbors(queries_QD[short], width)
        groups = group_codes(ids, reference.labels(ids, [column]), column, own_Q.take(pa.array(short)))
        ids_QK[short], scores_QK[short], still_short = exclude(ids, scores, *groups, k)
        short = short[still_short]
        if not len(short):
            break
    else:
        logger.warning("%d cells have fewer than %d neighbours of another %s", len(short), k, column)
    return ids_QK, scores_QK


def _widths(k: int, n_cells: int) -> Iterator[int]:
    """How many neighbours to look at, again and again, until k of them are of another group."""
    widest = max(k, min(_MAX_WIDTH, n_cells))
    width = 4 * k
    while width < widest:
        yield width
        width *= 4
    yield widest


@ray.remote
def _search_shard(folder: Folder, name: str, queries_QD: Float32Matrix, k: int, nprobe: int, threads: int) -> Neighbors:
    set_threads(threads)
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
