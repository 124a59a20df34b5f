"""Embeddings -> a trained template -> one shard per group of parts -> search parameters for the target recall."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from scgpt_ray.config import IndexSettings
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.identity import require_same_run
from scgpt_ray.index.card import CARD, MOST_VALUES, index_card
from scgpt_ray.index.description import RECALL, require_index
from scgpt_ray.index.factory import (
    EXACT,
    default_shards,
    empty_index,
    n_lists,
)
from scgpt_ray.index.recall import RECALL_K, RecallSample, choose_params, cost_model, point_at, without_self
from scgpt_ray.index.search import merge
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS
from scgpt_ray.parts.provenance import NOT_STATED, Provenance, embedded_with
from scgpt_ray.pipelines.executor import Engine, Executor
from scgpt_ray.pipelines.index_request import require_belongs, resolve, tracker_of
from scgpt_ray.pipelines.index_sample import Draw, samples_of
from scgpt_ray.pipelines.index_steps import (
    ShardInput,
    TemplateSpec,
    adopt_template,
    build_shards,
    new_cells,
    template_of,
    train_template,
)
from scgpt_ray.pipelines.recall import write_report
from scgpt_ray.pipelines.reference import Reference, exact_neighbors
from scgpt_ray.progress import Stage
from scgpt_ray.records import Fitness, IndexDescription, Manifest, ShardDescription
from scgpt_ray.storage import Folder
from scgpt_ray.tracking import Tracker

logger = logging.getLogger(__name__)

_RECALL_QUERIES = 256


def build_index(settings: IndexSettings, engine: Engine) -> IndexDescription:
    """Build the index of a finished set of embeddings, or add the cells that it lacks.

    A finished index of the same request is returned as it is. For an unfinished one, the template and the shards that
    were committed for this request are reused.

    Raises:
        InputError: If the embeddings, the factory or the output cannot be used.
    """
    source, output = Folder.at(settings.embeddings), Folder.at(settings.output)
    manifest = require_manifest(source)
    if settings.append:
        return append(settings, source, manifest, output, engine)
    request = resolve(settings, manifest)
    there = IndexDescription.read(output)
    if there is not None:
        require_same_run(output.uri, request, there.request)
        if settings.license in (None, there.license):
            logger.info("%s is finished: %d cells; nothing to do", output.uri, there.n_cells)
            return there
        with engine.open(there.n_cells) as executor:
            return _relicense(settings, there, source, manifest, output, executor)
    output.require_writable()
    tracker = tracker_of(output, settings.model_dump(), request, source, manifest, settings.tracking)
    with engine.open(manifest.n_cells) as executor, tracker:
        shards, recall_sample = _build(request, source, manifest, output, executor, settings.template)
        described = IndexDescription(
            request=request,
            factory=request["factory"],
            d=manifest.dimension,
            n_cells=sum(shard.n_cells for shard in shards),
            nprobe=1,
            rerank=0,
            recall_at_10=1.0,
            recall_queries=0,
            shards=tuple(shards),
            label_columns=tuple(request["labels"]),
            fingerprint=manifest.fingerprint,
            embeddings=source.uri,
            checkpoint=embedded_with(source),
            license=settings.license or NOT_STATED,
        )
        return finish(described, source, manifest, output, executor, tracker, recall_sample)


def _build(
    request: dict[str, Any],
    source: Folder,
    manifest: Manifest,
    output: Folder,
    executor: Executor,
    adopted: str | None = None,
) -> tuple[list[ShardDescription], RecallSample]:
    """Make template and shards of a request, but for those that are committed; `adopted` is the template's index.

    Each vector is read twice: for the samples of training and recall, and for its shard and the true neighbours.
    """
    queries = Draw(_RECALL_QUERIES, request["seed"] + 1)
    if adopted is not None or "template" in request:
        template = template_of(output) if adopted is None else adopt_template(Folder.at(adopted), output)
        [sampled] = samples_of(executor, source, manifest, [queries])
    else:
        spec = TemplateSpec(request["embeddings"], request["factory"], request["training"], request["seed"])
        template, sampled = train_template(executor, source, manifest, spec, output, queries)
    groups = [tuple(group.tolist()) for group in np.array_split(np.array(list(manifest.parts)), request["shards"])]
    labels = tuple(request["labels"])
    inputs = [ShardInput(source, request["embeddings"], group, labels) for group in groups]
    ids_Q, queries_QD = sampled
    k = _truth_k(manifest.n_cells - manifest.n_empty)
    built = build_shards(executor, inputs, 0, template, output, queries_QD, k)
    truth = [found for _, found in built if found is not None]
    others = [name for group, (_, found) in zip(groups, built, strict=True) if found is None for name in group]
    if others:
        truth.append(exact_neighbors(executor, source.folder(PARTS), others, queries_QD, k))
    return [shard for shard, _ in built], RecallSample(ids_Q, queries_QD, *without_self(*merge(truth, k), ids_Q))


def _truth_k(n_cells: int) -> int:
    """Number of true neighbours with the cell itself."""
    return min(max(RECALL_K) + 1, n_cells)


def rebuild(output: Folder, engine: Engine, delete: Callable[[], None]) -> IndexDescription:
    """Build the template and shards that a finished index lacks again; the description has the request.

    Args:
        output: Output folder of a finished `index`.
        engine: Opens the executor.
        delete: Deletes damaged files, once it is known that they can be built.

    Raises:
        ReferenceSetError: If the embeddings are gone or are others, or cells were appended.
    """
    there = require_index(output)
    source = Folder.at(there.embeddings)
    manifest = require_manifest(source)
    if there.appended or manifest.fingerprint.digest != there.request["embeddings"]:
        found = "has appended cells" if there.appended else f"was built of other embeddings than {source.uri} holds"
        raise ReferenceSetError(
            f"{output.uri} {found}: its shards cannot be built again one by one",
            expected="an index of one set of embeddings",
            remedy="build it again in a new folder",
        )
    delete()
    tracker = tracker_of(output, {"repair": output.uri}, there.request, source, manifest)
    with engine.open(manifest.n_cells) as executor, tracker:
        shards, recall_sample = _build(there.request, source, manifest, output, executor)
        described = there.replace(shards=tuple(shards))
        return finish(described, source, manifest, output, executor, tracker, recall_sample)


def append(
    settings: IndexSettings, source: Folder, manifest: Manifest, output: Folder, engine: Engine
) -> IndexDescription:
    """Add the cells of embeddings that an index lacks, as new shards of its template.

    The embeddings may be a larger version of those of the index, or others of the same checkpoint and atlas. Cells are
    identified by soma_joinid. The search parameters are chosen again, with cells of these embeddings.

    Raises:
        InputError: If there is no index, or the cells do not belong to it.
    """
    there = require_index(output)
    require_belongs(there, manifest, source, output)
    tracker = tracker_of(output, settings.model_dump(), there.request, source, manifest, settings.tracking)
    with engine.open(manifest.n_cells) as executor, tracker:
        added = add_shards(executor, source, manifest, output, there.label_columns, there.shards, settings.shards)
        if not added:
            logger.info("%s holds every cell of %s; nothing to add", output.uri, source.uri)
            return _relicense(settings, there, source, manifest, output, executor)
        known = dict.fromkeys((there.embeddings, *there.appended, source.uri))
        described = there.replace(
            n_cells=there.n_cells + sum(shard.n_cells for shard in added),
            shards=(*there.shards, *added),
            appended=tuple(known)[1:],
            license=settings.license or there.license,
        )
        return finish(described, source, manifest, output, executor, tracker)


def add_shards(
    executor: Executor,
    source: Folder,
    manifest: Manifest,
    output: Folder,
    labels: tuple[str, ...],
    known: tuple[ShardDescription, ...],
    shards: int | None = None,
    *,
    anew: bool = False,
) -> list[ShardDescription]:
    """Build shards of the cells of embeddings that known shards lack; by default as many as suit their number.

    They are numbered after the known ones. With `anew` they replace these, and hold all cells.
    """
    names, first = list(manifest.parts), 1 + max((shard.number for shard in known), default=-1)
    known = () if anew else known
    fresh = np.array(new_cells(executor, source, names, output, known))
    if not fresh.sum():
        return []
    parts = np.array(names)[fresh > 0]
    n_shards = min(shards or default_shards(int(fresh.sum())), len(parts))
    digest = manifest.fingerprint.digest
    inputs = [
        ShardInput(source, digest, tuple(group.tolist()), labels, known) for group in np.array_split(parts, n_shards)
    ]
    return [shard for shard, _ in build_shards(executor, inputs, first, template_of(output), output)]


def finish(
    described: IndexDescription,
    source: Folder,
    manifest: Manifest,
    output: Folder,
    executor: Executor,
    tracker: Tracker,
    recall_sample: RecallSample | None = None,
) -> IndexDescription:
    """Measure recall, choose the search parameters, examine the labels, and commit the index by its description.

    Without a `recall_sample`, cells are drawn and compared with all others.
    """
    # scikit-learn and numba take seconds to import.
    from scgpt_ray.pipelines.fitness import write_fitness
    from scgpt_ray.pipelines.index_report import REPORT, write_index_report

    reference = Reference(output, described, executor)
    target = described.request["target_recall"]
    recall_sample = recall_sample or _recall_sample(reference, executor, source, manifest)
    nlist = n_lists(empty_index(described.factory, described.d))
    cost = cost_model(described.factory, described.d, described.n_cells, nlist)

    def search(queries_QD: Any, k: int, params: Any) -> Any:
        return reference.neighbors(queries_QD, k, params=params)

    if described.factory == EXACT:
        chosen = point_at(reference.params, recall_sample, search, cost)
        curve = [chosen]
    else:
        chosen, curve = choose_params(recall_sample, search, nlist, cost, target)
    if chosen.recall_at_10 < target:
        logger.warning("recall@10 is %.4f, below --target-recall %.2f", chosen.recall_at_10, target)
    described = described.replace(
        nprobe=chosen.nprobe,
        rerank=chosen.rerank,
        recall_at_10=chosen.recall_at_10,
        recall_queries=len(recall_sample.ids_Q),
    )
    write_report(output, described, recall_sample, search, curve, reference.labels)
    write_fitness(replace(reference, index=described), described.request.get("held_out"))
    write_index_report(output, described)
    _commit(replace(reference, index=described), source, manifest)
    figures = {"nprobe": chosen.nprobe, "rerank": chosen.rerank, "recall_at_10": chosen.recall_at_10}
    tracker.log_metrics({"n_cells": described.n_cells, **figures})
    for name in (IndexDescription.file, RECALL, Fitness.file, CARD, REPORT):
        tracker.log_artifact(name)
    return described


def _relicense(
    settings: IndexSettings,
    there: IndexDescription,
    source: Folder,
    manifest: Manifest,
    output: Folder,
    executor: Executor,
) -> IndexDescription:
    """Give a finished index the requested licence, if it is another."""
    if settings.license in (None, there.license):
        return there
    described = there.replace(license=settings.license)
    _commit(Reference(output, described, executor), source, manifest)
    return described


def _commit(reference: Reference, source: Folder, manifest: Manifest) -> None:
    """Write the card, and the description, which makes the index a finished one."""
    index = reference.index
    provenance = Provenance.of(source, index.fingerprint, manifest.coverage)
    counts = {column: reference.listed_counts(column, MOST_VALUES) for column in index.label_columns}
    reference.folder.write(CARD, index_card(index, provenance, counts).encode())
    index.write(reference.folder)


@Stage("sample queries")
def _recall_sample(reference: Reference, executor: Executor, source: Folder, manifest: Manifest) -> RecallSample:
    """Sample cells of the embeddings, and find their true neighbours in the index.

    The truth is exact search over the embeddings; for an index with appended cells, over the vectors that it stores.
    """
    index = reference.index
    draw = Draw(_RECALL_QUERIES, index.request["seed"] + 1)
    [(ids_Q, queries_QD)] = samples_of(executor, source, manifest, [draw])
    k = _truth_k(index.n_cells)
    if index.appended:
        truth = reference.exact(queries_QD, k)
    else:
        truth = exact_neighbors(executor, source.folder(PARTS), list(manifest.parts), queries_QD, k)
    return RecallSample(ids_Q, queries_QD, *without_self(*truth, ids_Q))
