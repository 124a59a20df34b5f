"""Embeddings -> sample -> one trained template -> one shard per group of parts -> recall, measured."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from scgpt_ray.config import IndexSettings, parse_bytes
from scgpt_ray.errors import ConfigError, OutputError, ReferenceSetError
from scgpt_ray.flows.cluster import connected, cpus_of_nodes
from scgpt_ray.flows.search import exact_neighbors, index_neighbors
from scgpt_ray.folder import Folder
from scgpt_ray.index.description import INDEX, TEMPLATE, IndexDescription, ShardDescription, read_index
from scgpt_ray.index.factory import check_factory, choose_factory, empty_index, n_lists, training_size
from scgpt_ray.index.recall import choose_nprobe
from scgpt_ray.index.search import set_threads
from scgpt_ray.index.shard import build_shard
from scgpt_ray.index.template import nlist_of, train
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, Float32Matrix, Int64Array
from scgpt_ray.store.manifest import Manifest, require_manifest
from scgpt_ray.store.parts import PARTS, iterate_parts, read_part, read_vectors, vectors_of
from scgpt_ray.tracking import Tracker

logger = logging.getLogger(__name__)

RECALL_K = 10
_RECALL_QUERIES = 256
_CELLS_PER_SHARD = 1_000_000
_LISTS_PER_THREAD = 4096  # the work of k-means grows with the square of its lists


def build_index(settings: IndexSettings) -> IndexDescription:
    """Build the index of a finished set of embeddings.

    A finished index of the same request is left alone; an unfinished one is built again.

    Raises:
        InputError: If the embeddings, the factory or the output cannot be used.
    """
    source, output = Folder.at(settings.embeddings), Folder.at(settings.output)
    manifest = require_manifest(source)
    request = resolve(settings, manifest)
    there = read_index(output)
    if there is not None:
        if there.request != request:
            raise OutputError(
                f"{output.uri} holds another index ({there.factory} over {there.n_cells} cells of {there.embeddings})",
                expected="the same embeddings, labels, factory, shards, recall and seed",
                remedy="give --output another folder",
            )
        logger.info("%s is finished: %d cells; nothing to do", output.uri, there.n_cells)
        return there
    output.require_writable()
    with (
        connected(),
        Tracker("index", output, {"config": settings.model_dump(), "request": request}) as tracker,
    ):
        template = _train_template(source, manifest, request)
        output.write(TEMPLATE, template)
        shards = _build_shards(template, source, manifest, request, output)
        nprobe, recall, n_queries = _measure_recall(nlist_of(template), shards, source, manifest, request, output)
        description = IndexDescription(
            request=request,
            factory=request["factory"],
            d=manifest.dimension,
            n_cells=sum(shard.n_cells for shard in shards),
            nprobe=nprobe,
            recall_at_10=recall,
            recall_queries=n_queries,
            shards=tuple(shards),
            label_columns=tuple(request["labels"]),
            fingerprint=manifest.fingerprint.to_dict(),
            embeddings=source.uri,
        )
        output.write(INDEX, description.to_json())
        tracker.log_metrics({"n_cells": description.n_cells, "nprobe": nprobe, "recall_at_10": recall})
        tracker.log_artifact(INDEX)
    return description


def resolve(settings: IndexSettings, manifest: Manifest) -> dict[str, Any]:
    """What is asked for, with the defaults filled in; equal requests give equal indexes.

    Raises:
        InputError: If it cannot be had of these embeddings.
    """
    labels = list(dict.fromkeys(settings.label_columns or manifest.obs_columns))
    lacking = [name for name in labels if name not in manifest.obs_columns]
    if lacking:
        raise ConfigError(
            f"--label-columns {' '.join(lacking)}",
            expected=f"columns the embeddings carry ({', '.join(manifest.obs_columns) or 'none'})",
            remedy="run embed with --obs-columns into a new folder",
        )
    n_cells = manifest.n_cells - manifest.n_empty
    if not n_cells:
        raise ReferenceSetError(
            f"{settings.embeddings} has no cell with an embedding",
            expected="at least one",
            remedy="check the atlas",
        )
    n_shards = min(settings.shards or -(-n_cells // _CELLS_PER_SHARD), len(manifest.parts))
    budget = parse_bytes(settings.memory_budget) if settings.memory_budget else None
    factory = settings.factory
    if factory == "auto":
        factory = choose_factory(n_cells, manifest.dimension, budget, n_shards)
    check_factory(factory, manifest.dimension)
    return {
        "embeddings": manifest.fingerprint.digest,
        "labels": labels,
        "factory": factory,
        "shards": n_shards,
        "target_recall": settings.target_recall,
        "seed": settings.seed,
    }


def _train_template(source: Folder, manifest: Manifest, request: dict[str, Any]) -> bytes:
    """Train on rows drawn evenly from all parts."""
    n_cells = manifest.n_cells - manifest.n_empty
    size = training_size(request["factory"], n_cells, manifest.dimension)
    _, sample = _sample(source, manifest, size, request["seed"])
    nlist = n_lists(empty_index(request["factory"], manifest.dimension))
    threads = min(max(cpus_of_nodes()), -(-nlist // _LISTS_PER_THREAD))
    trained = _train.options(num_cpus=threads).remote(sample, request["factory"], request["seed"], threads)
    template: bytes = ray.get(trained)
    return template


def _build_shards(
    template: bytes, source: Folder, manifest: Manifest, request: dict[str, Any], output: Folder
) -> list[ShardDescription]:
    """One task per shard; each takes a run of parts."""
    shared = ray.put(template)
    groups = np.array_split(np.array(list(manifest.parts)), request["shards"])
    tasks = [
        _add_shard.remote(shared, source.folder(PARTS), group.tolist(), number, request["labels"], output)
        for number, group in enumerate(groups)
    ]
    shards: list[ShardDescription] = ray.get(tasks)
    return shards


def _measure_recall(
    nlist: int,
    shards: list[ShardDescription],
    source: Folder,
    manifest: Manifest,
    request: dict[str, Any],
    output: Folder,
) -> tuple[int, float, int]:
    """Recall@10 of a sample of the indexed cells, without counting that a cell finds itself.

    Returns:
        nprobe, recall@10, number of queries.
    """
    ids, queries = _sample(source, manifest, _RECALL_QUERIES, request["seed"] + 1)
    k = min(RECALL_K + 1, sum(shard.n_cells for shard in shards))
    if k == 1:
        return 1, 1.0, len(ids)  # a lone cell has no neighbour to miss
    true_ids, _ = exact_neighbors(source.folder(PARTS), list(manifest.parts), queries, k)

    def found_with(nprobe: int) -> Int64Array:
        found, _ = index_neighbors(output, shards, queries, k, nprobe)
        return _without_self(found, ids)

    nprobe, recall = choose_nprobe(found_with, _without_self(true_ids, ids), nlist, request["target_recall"])
    if recall < request["target_recall"]:
        logger.warning("recall@10 is %.4f, below --target-recall %.2f", recall, request["target_recall"])
    return nprobe, recall, len(ids)


def _without_self(neighbors_QK: Int64Array, own_Q: Int64Array) -> Int64Array:
    """Drop each query's own id, or its last neighbour where it did not find itself: [Q, K - 1]."""
    is_own_QK = neighbors_QK == own_Q[:, None]
    is_own_QK[~is_own_QK.any(axis=1), -1] = True
    others_QK: Int64Array = neighbors_QK[~is_own_QK].reshape(len(own_Q), -1)
    return others_QK


def _sample(source: Folder, manifest: Manifest, n: int, seed: int) -> tuple[Int64Array, Float32Matrix]:
    """Ids [n] and vectors [n, d] of n cells drawn evenly (all, where there are fewer), the same for a seed."""
    rows = np.fromiter(manifest.parts.values(), np.int64)
    ends = np.cumsum(rows)
    random = np.random.default_rng(seed)
    # Cells without an embedding fall out when they are read: draw for all of them, and thin afterwards.
    n_drawn = min(n + manifest.n_empty, ends[-1]) if n else 0
    drawn = np.sort(random.choice(ends[-1], n_drawn, replace=False, shuffle=False))
    part_of = np.searchsorted(ends, drawn, side="right")
    tasks = [
        _take.remote(source.folder(PARTS), name, drawn[part_of == number] - (ends - rows)[number])
        for number, name in enumerate(manifest.parts)
        if (part_of == number).any()
    ]
    taken: list[tuple[Int64Array, Float32Matrix]] = ray.get(tasks)
    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in taken)])
    vectors = np.concatenate([np.empty((0, manifest.dimension), np.float32), *(vectors for _, vectors in taken)])
    kept = np.sort(random.permutation(len(ids))[:n])
    return ids[kept], vectors[kept]


@ray.remote(num_cpus=1)
def _take(parts: Folder, name: str, rows: Int64Array) -> tuple[Int64Array, Float32Matrix]:
    return vectors_of(read_part(parts, name, [JOINID, EMBEDDING]).take(pa.array(rows)))


@ray.remote
def _train(sample: Float32Matrix, factory: str, seed: int, threads: int) -> bytes:
    set_threads(threads)
    return train(sample, factory, seed=seed)


@ray.remote(num_cpus=1)
def _add_shard(
    template: bytes, parts: Folder, names: list[str], number: int, labels: list[str], output: Folder
) -> ShardDescription:
    """Fill one shard and write it, with its labels beside it."""
    set_threads(1)
    name, labels_name = f"shard-{number:05d}.faiss", f"labels-{number:05d}.parquet"
    output.write(name, build_shard(template, (read_vectors(parts, part) for part in names)))
    tables = iterate_parts(parts, names, [JOINID, N_GENES, *labels])
    # A cell has an embedding where it has genes; the vectors need not be read again.
    embedded = pa.concat_tables(table.filter(pc.field(N_GENES) > 0).unify_dictionaries() for table in tables)
    kept = embedded.select([JOINID, *labels]).sort_by(JOINID).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    pq.write_table(kept, sink, compression="zstd")
    output.write(labels_name, sink.getvalue())
    return ShardDescription(name, kept.num_rows, labels_name)
