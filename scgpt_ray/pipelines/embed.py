"""Atlas -> cells -> tokens -> embeddings -> committed parts -> manifest."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import cut
from scgpt_ray.config import EmbedSettings
from scgpt_ray.network.checkpoint_files import CheckpointFiles
from scgpt_ray.network.embedder import COUNTERS, report_refused
from scgpt_ray.network.precision import require_precision
from scgpt_ray.parts.manifest import GENES, committed_parts, prove_complete, require_reported
from scgpt_ray.parts.parts import Part
from scgpt_ray.pipelines.embed_request import EmbedJob, check
from scgpt_ray.pipelines.executor import Engine, Executor, Pool, Stages
from scgpt_ray.pipelines.partition_steps import CommitPartition, EmbedPartition, ReadPartition
from scgpt_ray.pipelines.progress import Progress
from scgpt_ray.pipelines.shared_checkpoint import CHECKPOINT, share
from scgpt_ray.records import Manifest, Plan
from scgpt_ray.tracking import Tracker, versions

logger = logging.getLogger(__name__)


def embed(settings: EmbedSettings, engine: Engine) -> Manifest:
    """Embed the selected cells of an atlas, or finish an earlier run.

    The whole input is checked before anything is written or started.

    Args:
        settings: The request.
        engine: Opens the executor.

    Raises:
        InputError: If anything in the input is invalid; see `scgpt_ray.errors`.
        RunError: If the work failed; committed parts are kept, and the same command resumes.
    """
    job = check(settings, count_gpus=engine.gpus)
    if job.done is not None:
        logger.info("%s is finished: %d cells; nothing to do", job.output.uri, job.done.n_cells)
        return job.done
    params = {"config": settings.model_dump(), "fingerprint": asdict(job.fingerprint)}
    with (
        engine.open(job.n_cells, compute=settings) as executor,
        Tracker("embed", job.output, params) as tracker,
    ):
        manifest = run(job, executor, tracker)
        for name in (Plan.file, Manifest.file):
            tracker.log_artifact(name)
    return manifest


def run(job: EmbedJob, executor: Executor, tracker: Tracker) -> Manifest:
    """Run the remaining work of a checked request."""
    workers = executor.pool(job.settings)
    require_precision(workers.device, job.settings.precision)
    plan = make_plan(job, workers) if job.began is None else job.began
    parts, actors = run_plan(plan, job, executor, workers, tracker)
    return finish(plan, parts, job, actors)


def make_plan(job: EmbedJob, workers: Pool) -> Plan:
    """Divide the cells into partitions, and write the plan."""
    assert job.selection is not None, "cells are selected where no plan has fixed them"
    joinids, coverage = job.selection
    plan = Plan(
        fingerprint=job.fingerprint,
        settings=job.settings.model_dump(mode="json"),
        partitions=cut(joinids, job.settings.cells_per_partition or workers.cells_per_partition),
        coverage=coverage.to_dict(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    plan.write(job.output)
    return plan


def write_genes(job: EmbedJob) -> None:
    """Write the gene table of the fingerprint, from which workers read the token of each gene."""
    sink = pa.BufferOutputStream()
    pq.write_table(job.genes.to_table(), sink, compression="zstd")
    job.output.write(GENES, sink.getvalue())


def run_plan(
    plan: Plan, job: EmbedJob, executor: Executor, workers: Pool, tracker: Tracker
) -> tuple[dict[int, Part], list[dict[str, Any]]]:
    """Stream the partitions that are still to be done through the stages.

    Returns:
        All parts by partition, and the different descriptions of the actors that made the new ones.

    Raises:
        RunError: If the work failed.
    """
    parts = committed_parts(job.output, job.fingerprint)
    actors: list[dict[str, str | int]] = []
    todo = tuple(partition for partition in plan.partitions if partition.number not in parts)
    logger.info("%d cells in %d partitions, %d of them done", plan.n_cells, len(plan.partitions), len(parts))
    write_genes(job)  # again on resume: the table may be lost or damaged
    if not todo:
        return parts, actors
    assert job.checkpoint.files is not None, "it was read from files"
    checkpoint = share(job.checkpoint.files, job.output.folder(CHECKPOINT), executor)
    stages = stages_of(job, checkpoint, workers)
    with Progress(total=plan.n_cells, done=sum(part.n_cells for part in parts.values())) as progress:
        for number, receipt in enumerate(executor.stream(todo, stages, workers)):
            if number == 0:
                logger.info("%d actors of %s", workers.size, json.dumps(receipt["actor"]))
                tracker.log_params({"actors": workers.size, "actor": receipt["actor"]})
            note_actor(actors, receipt["actor"])
            part = Part(**receipt["part"])
            parts[part.partition] = part
            progress.add(part.n_cells, part.n_tokens, receipt["embed_s"])
            tracker.log_metrics(progress.metrics(workers.size), step=len(parts), now=False)
    tracker.log_metrics(progress.metrics(workers.size), step=len(parts))
    return parts, actors


def stages_of(job: EmbedJob, checkpoint: CheckpointFiles, workers: Pool) -> Stages:
    """The stages of a job: read, embed, commit."""
    precision, device_share = job.settings.precision, workers.num_gpus or 1.0
    vocabulary = job.checkpoint.vocabulary.sha256
    return Stages(
        read=ReadPartition(job.source, job.output, job.genes.digest(), checkpoint, vocabulary, job.rules),
        compute=EmbedPartition,
        arguments=(checkpoint, job.checkpoint.weights_sha256, precision, workers.device, workers.threads, device_share),
        commit=CommitPartition(job.output, job.fingerprint.digest),
    )


def note_actor(actors: list[dict[str, Any]], described: Mapping[str, Any]) -> None:
    """Add the description of an actor unless it is listed already; warn of faster kernels that do not work on it.

    Args:
        actors: Distinct descriptions, without the values that change during a run.
        described: Result of `Embedder.describe` of an actor.
    """
    actor = {name: value for name, value in described.items() if name not in COUNTERS}
    if actor not in actors:
        actors.append(actor)
        report_refused(actor)


def finish(plan: Plan, parts: dict[int, Part], job: EmbedJob, actors: Sequence[dict[str, Any]] = ()) -> Manifest:
    """Check that every planned cell is committed exactly once, and write the manifest.

    The folder is listed again: workers may have written elsewhere, or a part may have been deleted since.

    Args:
        plan: The plan.
        parts: Partition -> part that a worker committed.
        job: The request.
        actors: Descriptions of the actors of this run.

    Raises:
        CompletenessError: If cells are missing or were not planned, or if the folder holds other parts.
    """
    prove_complete(plan, parts)
    require_reported(job.output, parts, committed_parts(job.output, job.fingerprint))
    ordered = [parts[partition.number] for partition in plan.partitions]
    manifest = Manifest(
        fingerprint=job.fingerprint,
        n_cells=plan.n_cells,
        n_empty=sum(part.n_empty for part in ordered),
        n_tokens=sum(part.n_tokens for part in ordered),
        dimension=job.checkpoint.architecture.embsize,
        obs_columns=list(job.fingerprint.cells["obs_columns"]),
        parts={part.name: part.n_cells for part in ordered},
        digests=[part.data for part in ordered],
        coverage=plan.coverage,
        versions=versions(),
        actors=list(actors),
    )
    manifest.write(job.output)
    return manifest
