"""Atlas -> cells -> tokens -> embeddings -> committed parts -> manifest."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import Remainder, cut
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import EmbedSettings
from scgpt_ray.parts.earlier import TABLE
from scgpt_ray.parts.manifest import GENES, committed_parts, prove_complete, require_reported
from scgpt_ray.parts.parts import Part
from scgpt_ray.pipelines.embed_report import REPORT, Speed, write_embed_report
from scgpt_ray.pipelines.embed_request import EmbedJob, check
from scgpt_ray.pipelines.embed_run import NO_CELLS, EmbedRun
from scgpt_ray.pipelines.executor import Engine, Executor, Pool
from scgpt_ray.progress import Stage
from scgpt_ray.records import Manifest, Plan, Quarantine
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
    return complete(check(settings, count_gpus=engine.gpus), engine, "embed")


def complete(job: EmbedJob, engine: Engine, verb: str) -> Manifest:
    """Do what is left of a checked request.

    Args:
        job: The request.
        engine: Opens the executor.
        verb: Name of the run in MLflow.

    Raises:
        RunError: If the work failed; committed parts are kept.
    """
    if job.done is not None:
        logger.info("%s is finished: %d cells; nothing to do", job.output.uri, job.done.n_cells)
        _report_newer(job)
        return job.done
    tracker = Tracker(
        verb,
        job.output,
        {"config": job.settings.model_dump(), "fingerprint": asdict(job.fingerprint)},
        request=job.fingerprint.digest,
        inputs=[job.dataset("atlas")],
        network=job.settings.checkpoint,
        tags=job.tags(),
        tracking=job.settings.tracking,
    )
    with engine.open(job.n_cells, compute=job.settings) as executor, tracker:
        manifest = run(job, executor, tracker)
        for name in (Plan.file, Manifest.file, REPORT):
            tracker.log_artifact(name)
    return manifest


def _report_newer(job: EmbedJob) -> None:
    """Say so if the atlas has been written since it was embedded."""
    now = locate(job.settings.atlas, job.settings, identifiers=True).identity()
    if now != job.source.identity():
        logger.warning(
            "%s has been written since: scgpt-ray refresh --embeddings %s --output NEW embeds what is new",
            job.source.uri,
            job.output.uri,
        )


def run(job: EmbedJob, executor: Executor, tracker: Tracker) -> Manifest:
    """Run the remaining work of a checked request."""
    from scgpt_ray.network.precision import require_precision  # as in `embed_request`

    workers = executor.pool(job.settings)
    require_precision(workers.device, job.settings.precision)
    plan = make_plan(job, workers) if job.began is None else job.began
    write_genes(job)  # again on resume: the table may be lost or damaged
    work = EmbedRun(job, plan, executor, workers, tracker)
    before, started = sum(part.n_cells for part in work.parts.values()), time.monotonic()
    quarantine, left = work.finish_plan()
    speed = Speed(sum(part.n_cells for part in work.parts.values()) - before, time.monotonic() - started)
    manifest = finish(plan, work.parts, job, quarantine, left, speed)
    counts = {"n_cells": manifest.n_cells, "n_empty": manifest.n_empty, "n_quarantined": manifest.n_quarantined}
    tracker.log_metrics({**counts, "coverage": manifest.coverage["fraction"]}, step=len(work.parts))
    return manifest


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


@Stage("check the parts")
def finish(
    plan: Plan,
    parts: Mapping[int, Part],
    job: EmbedJob,
    quarantine: Quarantine = NO_CELLS,
    left: Mapping[int, Remainder | None] = MappingProxyType({}),
    speed: Speed | None = None,
) -> Manifest:
    """Check that every planned cell is committed exactly once or in quarantine, and write report and manifest.

    The folder is listed again: workers may have written elsewhere, or a part may have been deleted since.

    Args:
        plan: The plan.
        parts: Partition -> part that a worker committed.
        job: The request.
        quarantine: Cells that could not be embedded, as quarantine.json lists them.
        left: What is committed of their partitions; see `remainders`.
        speed: Of this run.

    Raises:
        CompletenessError: If cells are missing or were not planned, or if the folder holds other parts.
    """
    prove_complete(plan, parts, left)
    require_reported(job.output, parts, committed_parts(job.output, job.fingerprint))
    ordered = [parts[number] for number in sorted(parts)]
    manifest = Manifest(
        fingerprint=job.fingerprint,
        n_cells=plan.n_cells - quarantine.n_cells,
        n_quarantined=quarantine.n_cells,
        n_empty=sum(part.n_empty for part in ordered),
        n_tokens=sum(part.n_tokens for part in ordered),
        dimension=job.checkpoint.width,
        obs_columns=list(job.fingerprint.cells["obs_columns"]),
        parts={part.name: part.n_cells for part in ordered},
        digests=[part.data for part in ordered],
        coverage=plan.coverage,
        versions=versions(),
        actors=[dict(facts) for facts in dict.fromkeys(tuple(part.actor.items()) for part in ordered) if facts],
    )
    if not quarantine.cells and job.output.has(Quarantine.file):
        job.output.remove(Quarantine.file)
    write_embed_report(job, manifest, ordered, quarantine, speed)
    manifest.write(job.output)  # last: it marks the run as finished
    if job.output.has(TABLE):
        job.output.remove(TABLE)
    return manifest
