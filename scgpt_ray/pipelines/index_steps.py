"""The steps that build an index from parts: one trains the template, one fills each shard; no vectors are passed on."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.identity import digest_of
from scgpt_ray.index.description import CENTRE, TEMPLATE, TEMPLATE_MARKER
from scgpt_ray.index.factory import EXACT, empty_index, n_lists
from scgpt_ray.index.gpu import gpus
from scgpt_ray.index.recall import Truth
from scgpt_ray.index.removal import left_ids
from scgpt_ray.index.search import Neighbors, set_threads
from scgpt_ray.index.shard import build_shard, commit_shard, committed_shard
from scgpt_ray.index.template import centre_of, train
from scgpt_ray.parts.parts import PARTS, iterate_parts, read_vectors
from scgpt_ray.pipelines.executor import Executor
from scgpt_ray.pipelines.index_sample import Draw, Sampled, samples, samples_of
from scgpt_ray.records import Manifest, ShardDescription
from scgpt_ray.schema import JOINID, N_GENES, Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

_LISTS_PER_THREAD = 4096  # the work of k-means grows with the square of its lists


@dataclass(frozen=True)
class TemplateSpec:
    """What determines the template; equal specs give equal bytes.

    Attributes:
        embeddings: Digest of the fingerprint of the embeddings.
        factory: faiss factory string.
        rows: Rows of the training sample.
        seed: Seed of the sample and of k-means.
    """

    embeddings: str
    factory: str
    rows: int
    seed: int

    @property
    def digest(self) -> str:
        """SHA-256 (hex)."""
        return digest_of(vars(self))


@dataclass(frozen=True)
class ShardInput:
    """The cells of a shard.

    Attributes:
        source: Embeddings folder.
        fingerprint: Digest of its fingerprint.
        parts: Names of the parts, in order.
        labels: Label columns to store with the vectors.
        known: Existing shards of the index, whose cells are skipped.
    """

    source: Folder
    fingerprint: str
    parts: tuple[str, ...]
    labels: tuple[str, ...]
    known: tuple[ShardDescription, ...] = ()

    def digest(self, template: str) -> str:
        """SHA-256 (hex) of what determines a shard: the template, and its cells and labels."""
        known = [[shard.name, shard.removed] for shard in self.known]
        return digest_of([template, self.fingerprint, self.parts, self.labels, known])


def train_template(
    executor: Executor, source: Folder, manifest: Manifest, spec: TemplateSpec, output: Folder, queries: Draw
) -> tuple[str, Sampled]:
    """Train the template in a task that reads its sample, unless the template of this spec is committed.

    Args:
        executor: Runs the task.
        source: Embeddings folder.
        manifest: Its manifest.
        spec: Of the template.
        output: The index folder.
        queries: Another sample, drawn in the same pass.

    Returns:
        Digest of template and centre, to which the shards refer; and the other sample.
    """
    committed = committed_template(output)
    if committed is not None and committed["spec"] == spec.digest:
        return str(committed["content"]), samples_of(executor, source, manifest, [queries])[0]
    nlist = n_lists(empty_index(spec.factory, manifest.dimension))
    threads = min(max(executor.nodes), -(-nlist // _LISTS_PER_THREAD))
    call = (source, manifest, spec, output, queries, threads)
    [(content, sampled)] = executor.tasks(_train, [call], cpus=threads, gpus=1)
    return content, sampled


def adopt_template(index: Folder, output: Folder) -> str:
    """Copy the template of an index, unless it is there already.

    Returns:
        Digest of template and centre.

    Raises:
        ReferenceSetError: If the index has no whole template.
    """
    content = template_of(index)
    there = committed_template(output)
    if there is None or there["content"] != content:
        for name in (TEMPLATE, CENTRE, TEMPLATE_MARKER):
            output.write(name, index.read(name))
    return content


def template_of(output: Folder) -> str:
    """Digest of the template of an index.

    Raises:
        ReferenceSetError: If it has changed since.
    """
    template = committed_template(output)
    if template is None:
        raise ReferenceSetError(
            f"the template of {output.uri} is not the one that the index was built with",
            expected="template.faiss, centre.npy and template.json as `index` wrote them",
            remedy="build the index again; see scgpt-ray validate",
        )
    return str(template["content"])


def committed_template(output: Folder) -> dict[str, Any] | None:
    """The commit marker of the template, if it fits template and centre; else None."""
    if not all(output.has(name) for name in (TEMPLATE_MARKER, TEMPLATE, CENTRE)):
        return None
    try:
        marker: dict[str, Any] = json.loads(output.read(TEMPLATE_MARKER))
    except ValueError:  # an invalid marker: train again
        return None
    return marker if marker.get("content") == _content(output) else None


def _content(output: Folder) -> str:
    return hashlib.sha256(output.read(TEMPLATE) + output.read(CENTRE)).hexdigest()


def _train(
    source: Folder, manifest: Manifest, spec: TemplateSpec, output: Folder, queries: Draw, threads: int
) -> tuple[str, Sampled]:
    set_threads(threads)
    (_, sample_ND), sampled = samples(source, manifest, [Draw(spec.rows, spec.seed), queries])
    template = train(sample_ND, spec.factory, seed=spec.seed, to_gpus=gpus())
    centre = io.BytesIO()
    np.save(centre, centre_of(sample_ND))
    values = {"spec": spec.digest, "is_exact": spec.factory == EXACT}
    output.write(TEMPLATE, template)
    output.write(CENTRE, centre.getvalue())
    content = hashlib.sha256(template + centre.getvalue()).hexdigest()
    output.write(TEMPLATE_MARKER, json.dumps({**values, "content": content}).encode())
    return content, sampled


def build_shards(
    executor: Executor,
    inputs: Sequence[ShardInput],
    first: int,
    template: str,
    output: Folder,
    queries_QD: Float32Matrix | None = None,
    k: int = 0,
) -> list[tuple[ShardDescription, Neighbors | None]]:
    """Build the shards that are not committed yet, one task each.

    Args:
        executor: Runs the tasks.
        inputs: Cells of each shard.
        first: Number of the first shard.
        template: Digest of the template, as `train_template` returns it.
        output: The index folder.
        queries_QD: float32 [Q, d], whose k nearest neighbours are found among the vectors that are read.
        k: Number of neighbours.

    Returns:
        Each shard, and the neighbours of the queries among its cells; None for a shard that was committed before.
    """
    requests = [shard_input.digest(template) for shard_input in inputs]
    committed = [committed_shard(output, first + place, request) for place, request in enumerate(requests)]
    places = [place for place, shard in enumerate(committed) if shard is None]
    queries = executor.share(queries_QD)
    calls = [(inputs[place], first + place, requests[place], output, queries, k) for place in places]
    built = dict(zip(places, executor.tasks(_add_shard, calls, gpus=1), strict=True))
    return [built[place] if shard is None else (shard, None) for place, shard in enumerate(committed)]


def _add_shard(
    shard_input: ShardInput, number: int, request: str, output: Folder, queries_QD: Float32Matrix | None, k: int
) -> tuple[ShardDescription, Neighbors | None]:
    """Fill one shard and write it with its labels; the commit marker is written last."""
    set_threads(1)
    template = output.read(TEMPLATE)
    centre_D = np.load(io.BytesIO(output.read(CENTRE)), allow_pickle=False)
    known_N = known_ids(output, shard_input.known)
    is_exact = json.loads(output.read(TEMPLATE_MARKER))["is_exact"]
    shard = ShardDescription.of(number, 0, is_exact=is_exact)
    parts = shard_input.source.folder(PARTS)
    blocks = (_new(*read_vectors(parts, part), known_N) for part in shard_input.parts)
    truth = None if queries_QD is None else Truth(queries_QD, k)
    seen = blocks if truth is None else truth.seen(blocks)
    n_cells = build_shard(template, seen, output, shard, centre_D, to_gpus=gpus())
    kept = pa.concat_tables(_label_tables(shard_input, known_N))
    assert kept.num_rows == n_cells, "a cell has an embedding where it has genes"
    with output.staged(shard.labels) as path:
        pq.write_table(kept.replace_schema_metadata(None), path, compression="zstd")
    shard = ShardDescription.of(number, n_cells, is_exact=is_exact)
    commit_shard(output, shard, request)
    return shard, None if truth is None else truth.neighbors


def known_ids(output: Folder, shards: Sequence[ShardDescription]) -> Int64Array:
    """Sorted soma_joinids of the cells of some shards that are part of the index."""
    return np.sort(np.concatenate([np.empty(0, np.int64), *(left_ids(output, shard) for shard in shards)]))


def is_new(ids_N: Int64Array, known_N: Int64Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Ids that are not among the sorted `known_N`, bool [n]."""
    place_N = np.searchsorted(known_N, ids_N)
    found_N = place_N < len(known_N)
    found_N[found_N] = known_N[place_N[found_N]] == ids_N[found_N]
    return ~found_N


def _new(ids_N: Int64Array, vectors_ND: Float32Matrix, known_N: Int64Array) -> tuple[Int64Array, Float32Matrix]:
    new_N = is_new(ids_N, known_N)
    return (ids_N, vectors_ND) if new_N.all() else (ids_N[new_N], vectors_ND[new_N])


def _label_tables(shard_input: ShardInput, known_N: Int64Array) -> Iterator[pa.Table]:
    """Labels of the cells that have an embedding, part by part, without reading the vectors."""
    parts, labels = shard_input.source.folder(PARTS), shard_input.labels
    for table in iterate_parts(parts, list(shard_input.parts), [JOINID, N_GENES, *labels]):
        embedded = table.filter(pc.field(N_GENES) > 0)
        new = embedded.filter(pa.array(is_new(embedded[JOINID].to_numpy(), known_N)))
        yield new.select([JOINID, *labels]).unify_dictionaries()


def _new_cells(parts: Folder, names: Sequence[str], output: Folder, known: Sequence[ShardDescription]) -> list[int]:
    known_N = known_ids(output, known)
    counts = []
    for table in iterate_parts(parts, list(names), [JOINID, N_GENES]):
        ids_N = table[JOINID].to_numpy()[table[N_GENES].to_numpy() > 0]
        counts.append(int(is_new(ids_N, known_N).sum()))
    return counts


def new_cells(
    executor: Executor, source: Folder, names: Sequence[str], output: Folder, known: Sequence[ShardDescription]
) -> list[int]:
    """Number of cells of each part that have an embedding and are in none of the shards."""
    [counts] = executor.tasks(_new_cells, [(source.folder(PARTS), names, output, known)], cpus=0.5)
    return list(counts)
