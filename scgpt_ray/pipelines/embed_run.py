"""A run of embed at work: partitions through the stages, and around the cells that fail."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from scgpt_ray.atlas.plan import Partition, Remainder
from scgpt_ray.parts.manifest import committed_parts
from scgpt_ray.parts.parts import PARTS, Part, part_name
from scgpt_ray.pipelines.embed_request import EmbedJob
from scgpt_ray.pipelines.executor import RETRIES, Executor, Failure, Pool, Stages
from scgpt_ray.pipelines.partition_steps import (
    CommitPartition,
    EmbedPartition,
    ReadPartition,
    RefreshPartition,
    discard,
)
from scgpt_ray.pipelines.progress import Progress
from scgpt_ray.pipelines.quarantine import (
    isolate,
    quarantine_of,
    remainders,
    require_few,
    require_few_cells,
    whole,
)
from scgpt_ray.pipelines.shared_checkpoint import CHECKPOINT, share
from scgpt_ray.records import Manifest, Plan, Quarantine
from scgpt_ray.schema import COUNTERS, Int64Array
from scgpt_ray.tracking import Tracker

logger = logging.getLogger(__name__)

NO_CELLS = Quarantine(cells=())


@dataclass
class EmbedRun:
    """The work on a plan.

    Attributes:
        job: The request.
        plan: The plan.
        executor: Runs the stages.
        workers: The actors.
        tracker: Records the run.
        parts: Committed parts, by partition.
        actors: Different descriptions of the actors that made the parts of this run.
    """

    job: EmbedJob
    plan: Plan
    executor: Executor
    workers: Pool
    tracker: Tracker
    parts: dict[int, Part] = field(init=False)
    actors: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = committed_parts(self.job.output, self.job.fingerprint)

    def finish_plan(self) -> tuple[Quarantine, dict[int, Remainder | None]]:
        """Embed what is not committed yet; what an earlier run left in quarantine is tried again.

        Returns:
            Cells that cannot be embedded, and what is committed of their partitions.

        Raises:
            RunError: If the work failed, or that of more cells than `max_failed` allows.
        """
        known = Quarantine.read(self.job.output) or NO_CELLS
        incomplete = {cells.partition for cells in known.cells}
        todo = tuple(
            partition
            for partition in self.plan.partitions
            if partition.number not in self.parts
            or (partition.number in incomplete and self.parts[partition.number].joinids != partition.digest)
        )
        n_partitions = len(self.plan.partitions)
        n_done = n_partitions - len(todo)
        logger.info("%d cells in %d partitions, %d of them done", self.plan.n_cells, n_partitions, n_done)
        if self.job.output.has(Manifest.file):
            self.job.output.remove(Manifest.file)  # parts are about to be replaced
        failed = self._commit(todo) if todo else []
        return self._around(failed, known) if failed else (NO_CELLS, {})

    def _around(self, failed: list[Failure], known: Quarantine) -> tuple[Quarantine, dict[int, Remainder | None]]:
        """Embed the partitions that failed without the cells that make them fail."""
        joinids = self.job.selection[0] if self.job.selection else self.job.source.joinids()
        quarantine = isolate(failed, known, joinids, self._try)
        guilty = {cells.partition for cells in quarantine.cells}
        innocent = [failure.partition for failure in failed if failure.partition.number not in guilty]
        failed = self._commit_left(quarantine, joinids) + (self._commit(tuple(innocent)) if innocent else [])
        if failed:  # whose cells fail only together: given up for this run
            numbers = {failure.partition.number for failure in failed}
            kept = [cells for cells in quarantine.cells if cells.partition not in numbers]
            planned = (replace(failure, partition=self.plan.partitions[failure.partition.number]) for failure in failed)
            quarantine = quarantine_of([*kept, *(whole(failure, joinids) for failure in planned)])
            self._commit_left(quarantine, joinids)
        self.executor.report(self.job.output, {"quarantined": quarantine.n_cells}, {})
        self.tracker.log_metrics({"quarantined": quarantine.n_cells}, step=len(self.parts))
        for cells in quarantine.cells:
            logger.warning("partition %d: %d cells failed: %s", cells.partition, cells.n_cells, cells.reason)
        return quarantine, remainders(self.plan, quarantine, joinids)

    def _commit_left(self, quarantine: Quarantine, joinids: Int64Array) -> list[Failure]:
        """List the cells in quarantine, then commit what is left of their partitions."""
        quarantine.write(self.job.output)
        require_few_cells(quarantine, self.plan, self.job.settings.max_failed)
        todo = []
        for number, left in remainders(self.plan, quarantine, joinids).items():
            part = self.parts.get(number)
            if part is not None and (left is None or part.joinids != left.digest):
                self.job.output.folder(PARTS).remove(part_name(number))
                del self.parts[number]
            if left is not None and number not in self.parts:
                todo.append(left)
        return self._commit(tuple(todo)) if todo else []

    def _commit(self, todo: tuple[Partition, ...]) -> list[Failure]:
        """Stream partitions through the stages; returns those that failed."""
        failed: list[Failure] = []
        done = sum(part.n_cells for part in self.parts.values())
        with Progress("embed", self.plan.n_cells, done) as progress:
            for number, receipt in enumerate(self.executor.stream(todo, self._stages, self.workers), 1):
                if isinstance(receipt, Failure):
                    failed.append(receipt)
                    logger.warning("partition %d failed: %s", receipt.partition.number, receipt.reason)
                    require_few(failed, self.plan, self.job.settings.max_failed)
                    continue
                self._note_actor(receipt["actor"])
                part = Part(**receipt["part"])
                self.parts[part.partition] = part
                sizes = {"cells": part.n_cells, "tokens": part.n_tokens, "bytes": receipt["n_bytes"]}
                counts = {**sizes, RETRIES: receipt[RETRIES]}
                progress.add(counts, receipt["embed_s"])
                self._show(progress, counts, queue=len(todo) - number)
            self._show(progress, {}, queue=0)
        return failed

    def _show(self, progress: Progress, counts: Mapping[str, int], *, queue: int) -> None:
        """Report the figures of a part to those who watch the cluster, and all so far to MLflow."""
        levels = {"queue": queue, "busy_share": progress.busy_share(self.workers.size)}
        self.executor.report(self.job.output, counts, levels)
        self.tracker.log_metrics(progress.metrics() | levels, step=len(self.parts), now=not queue)

    def _try(self, pieces: tuple[Partition, ...]) -> list[Failure]:
        """Read and embed cells once without committing them; returns those that failed."""
        stages = replace(self._stages, commit=discard, attempts=1)
        done = self.executor.stream(pieces, stages, self.workers)
        return [failure for failure in done if isinstance(failure, Failure)]

    @cached_property
    def _stages(self) -> Stages:
        if self.job.earlier is not None:
            self.job.earlier.write_table()
        return embed_stages(self.job, self.executor, self.workers)

    def _note_actor(self, described: Mapping[str, Any]) -> None:
        if not self.actors:
            facts = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in described.items())
            logger.info("actors: %d; %s", self.workers.size, facts)
            self.tracker.log_params({"actors": self.workers.size, "actor": described})
        note_actor(self.actors, described)


def embed_stages(job: EmbedJob, executor: Executor, workers: Pool) -> Stages:
    """The steps of a request: cells are read, embedded by the actors, and committed."""
    assert job.checkpoint.files is not None, "it was read from files"
    checkpoint = share(job.checkpoint.files, job.output.folder(CHECKPOINT), executor)
    weights, vocabulary = job.checkpoint.weights_sha256, job.checkpoint.vocabulary.sha256
    network = (checkpoint, weights, job.settings.precision, job.settings.pooling)
    arguments = (*network, workers.device, workers.threads, workers.num_gpus or 1.0)
    return Stages(
        read=ReadPartition(
            job.source, job.output, job.genes.digest(), checkpoint, vocabulary, job.checkpoint.tokenizer(job.rules)
        ),
        compute=EmbedPartition if job.earlier is None else RefreshPartition,
        arguments=arguments if job.earlier is None else (job.earlier, *arguments),
        commit=CommitPartition(job.output, job.fingerprint.digest),
    )


def note_actor(actors: list[dict[str, Any]], described: Mapping[str, Any]) -> None:
    """Add the description of an actor unless it is listed already; warn of faster kernels that do not work on it.

    Args:
        actors: Distinct descriptions, without the values that change during a run.
        described: Result of `Embedder.describe` of an actor.
    """
    from scgpt_ray.network.embedder import report_refused  # on need, as in `embed_request`

    actor = {name: value for name, value in described.items() if name not in COUNTERS}
    if actor not in actors:
        actors.append(actor)
        report_refused(actor)
