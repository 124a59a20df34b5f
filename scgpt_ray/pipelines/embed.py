"""The main flow: atlas -> cells -> tokens -> embedding -> committed parts -> manifest."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import Plan, cut
from scgpt_ray.config import EmbedSettings
from scgpt_ray.execution.cluster import Pool, available_gpus, connected, pool
from scgpt_ray.execution.partitions import ReadJob, as_row, from_row
from scgpt_ray.execution.stream import Stages, stream
from scgpt_ray.network.checkpoint import read_checkpoint
from scgpt_ray.network.embedder import COUNTERS, Embedder, report_refused, set_threads
from scgpt_ray.network.precision import require_precision
from scgpt_ray.parts.manifest import GENES, MANIFEST, PLAN, Manifest, committed_parts, prove_coverage
from scgpt_ray.parts.parts import Part
from scgpt_ray.pipelines.embed_request import EmbedJob, check
from scgpt_ray.pipelines.progress import Progress
from scgpt_ray.schema import BIN
from scgpt_ray.tracking import Tracker, versions

logger = logging.getLogger(__name__)


def embed(settings: EmbedSettings) -> Manifest:
    """Embed every selected cell of an atlas; finish what an earlier run began.

    Nothing is written and no cluster is asked for before all of the input is known to be good.

    Raises:
        InputError: If anything in the input is wrong; see `scgpt_ray.errors`.
        RunError: If the work failed; what is committed stays, and the same command resumes.
    """
    job = check(settings, count_gpus=available_gpus)
    if job.done is not None:
        logger.info("%s is finished: %d cells; nothing to do", job.output.uri, job.done.n_cells)
        return job.done
    params = {"config": settings.model_dump(), "fingerprint": job.fingerprint.to_dict()}
    with connected(), Tracker("embed", job.output, params) as tracker:
        manifest = run(job, tracker)
        for name in (PLAN, MANIFEST):
            tracker.log_artifact(name)
    return manifest


def run(job: EmbedJob, tracker: Tracker) -> Manifest:
    """Do what is still to be done of a checked request, on the Ray this process is connected to."""
    workers = pool(job.settings)
    require_precision(workers.device, job.settings.precision)
    plan = make_plan(job, workers) if job.began is None else job.began
    parts, actors = run_plan(plan, job, workers, tracker)
    return finish(plan, parts, job, actors)


def make_plan(job: EmbedJob, workers: Pool) -> Plan:
    """Number the partitions and write the plan, before any cell is read for real."""
    assert job.selection is not None, "cells are selected where no plan has fixed them"
    joinids, coverage = job.selection
    plan = Plan(
        fingerprint=job.fingerprint.to_dict(),
        settings=job.settings.model_dump(mode="json"),
        partitions=cut(joinids, job.settings.cells_per_partition or workers.cells_per_partition),
        coverage=coverage.to_dict(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    sink = pa.BufferOutputStream()
    pq.write_table(job.genes.to_table(), sink, compression="zstd")
    job.output.write(GENES, sink.getvalue())
    job.output.write(PLAN, plan.to_json())
    return plan


def run_plan(
    plan: Plan, job: EmbedJob, workers: Pool, tracker: Tracker
) -> tuple[dict[int, Part], list[dict[str, str | int]]]:
    """Stream the partitions that are still to be done through Ray.

    Returns:
        All parts by partition, and the different descriptions of the actors that made the new ones.

    Raises:
        RunError: If the work failed.
    """
    parts = committed_parts(job.output, job.fingerprint)
    actors: list[dict[str, str | int]] = []
    todo = tuple(partition for partition in plan.partitions if partition.number not in parts)
    logger.info("%d cells in %d partitions, %d of them done", plan.n_cells, len(plan.partitions), len(parts))
    if not todo:
        return parts, actors
    with Progress(total=plan.n_cells, done=sum(part.n_cells for part in parts.values())) as progress:
        for number, receipt in enumerate(stream(todo, stages_of(job, workers), workers)):
            if number == 0:
                logger.info("%d actors of %s", workers.size, receipt["actor"])
                tracker.log_params({"actors": workers.size, "actor": json.loads(receipt["actor"])})
            note_actor(actors, json.loads(receipt["actor"]))
            part = Part(**json.loads(receipt["part"]))
            parts[part.partition] = part
            progress.add(part.n_cells, part.n_tokens, receipt["embed_s"])
            tracker.log_metrics(progress.metrics(workers.size), step=len(parts), now=False)
    tracker.log_metrics(progress.metrics(workers.size), step=len(parts))
    return parts, actors


def note_actor(actors: list[dict[str, str | int]], described: Mapping[str, str | int]) -> None:
    """Add what an actor computes with, unless others compute with the same; warn of kernels it had to pass over.

    Args:
        actors: Different descriptions, without what changes while an actor works.
        described: What an actor says of itself.
    """
    actor = {name: value for name, value in described.items() if name not in COUNTERS}
    if actor not in actors:
        actors.append(actor)
        report_refused(actor)


def stages_of(job: EmbedJob, workers: Pool) -> Stages:
    """Reading, embedding and committing of a job."""
    checkpoint = job.checkpoint.folder
    return Stages(
        reading=ReadJob(job.source, job.output, checkpoint, job.rules),
        actor=EmbedActor,
        arguments=(checkpoint, job.settings.precision, workers.device, workers.threads, workers.num_gpus or 1.0),
        output=job.output,
        fingerprint=job.fingerprint.digest,
    )


class EmbedActor:
    """One copy of the network on one device, warmed up; a call embeds one partition."""

    def __init__(self, checkpoint: str, precision: str, device: str, threads: int, device_share: float = 1.0) -> None:
        set_threads(threads)
        self.embedder = Embedder(
            read_checkpoint(checkpoint), device=device, precision=precision, device_share=device_share
        )

    def __call__(self, row: pa.Table) -> pa.Table:
        """A row of TOKENS to a row of EMBEDDINGS."""
        tokens, values = from_row(row)
        started = time.monotonic()
        embeddings = self.embedder(tokens)
        return as_row(
            embeddings,
            **values,
            n_tokens=len(tokens[BIN].combine_chunks().flatten()),
            embed_s=time.monotonic() - started,
            actor=json.dumps(self.embedder.describe()),
        )


def finish(plan: Plan, parts: dict[int, Part], job: EmbedJob, actors: Sequence[dict[str, str | int]] = ()) -> Manifest:
    """Prove that every planned cell is committed once, and write the manifest.

    Args:
        plan: What was planned.
        parts: What is committed, by partition.
        job: The request.
        actors: Descriptions of the actors of this run.

    Raises:
        CoverageError: If not.
    """
    prove_coverage(plan, parts)
    ordered = [parts[partition.number] for partition in plan.partitions]
    manifest = Manifest(
        fingerprint=job.fingerprint,
        n_cells=plan.n_cells,
        n_empty=sum(part.n_empty for part in ordered),
        n_tokens=sum(part.n_tokens for part in ordered),
        dimension=job.checkpoint.architecture.embsize,
        obs_columns=list(job.fingerprint.cells["obs_columns"]),
        parts={part.name: part.n_cells for part in ordered},
        coverage=plan.coverage,
        versions=versions(),
        actors=list(actors),
    )
    job.output.write(MANIFEST, manifest.to_json())
    return manifest
