"""The main flow: atlas -> cells -> tokens -> embedding -> committed parts -> manifest."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from scgpt_ray import __version__
from scgpt_ray.cells.genes import Coverage, GeneMap, coverage, harmonize
from scgpt_ray.cells.plan import Partition, Plan, cut
from scgpt_ray.cells.source import Source, locate
from scgpt_ray.config import CellSettings, EmbedSettings
from scgpt_ray.errors import OutputError
from scgpt_ray.flows.cluster import Pool, connected, pool
from scgpt_ray.flows.partitions import PartitionSource, ReadJob, as_row, from_row
from scgpt_ray.flows.progress import Progress
from scgpt_ray.folder import Folder
from scgpt_ray.model.checkpoint import Checkpoint, read_checkpoint
from scgpt_ray.model.embedder import Embedder, set_threads
from scgpt_ray.model.tokens import RULES_VERSION, TokenRules
from scgpt_ray.schema import BIN, Int64Array
from scgpt_ray.store.fingerprint import Fingerprint
from scgpt_ray.store.manifest import (
    GENES,
    MANIFEST,
    PLAN,
    Manifest,
    committed_parts,
    prove_coverage,
    read_manifest,
    read_plan,
)
from scgpt_ray.store.parts import PARTS, Part, write_part
from scgpt_ray.tracking import Tracker

logger = logging.getLogger(__name__)


def embed(settings: EmbedSettings, tracker: Tracker | None = None) -> Manifest:
    """Embed every selected cell of an atlas; finish what an earlier run began.

    Nothing is written and no cluster is asked for before all of the input is known to be good.

    Args:
        settings: What is asked for.
        tracker: The run to log to; None for one of its own.

    Raises:
        InputError: If anything in the input is wrong; see `scgpt_ray.errors`.
        RunError: If the work failed; what is committed stays, and the same command resumes.
    """
    output = Folder.at(settings.output)
    began = read_plan(output)
    job = prepare(settings, began)
    if began is not None:
        require_same(began, job.fingerprint, output)
        done = read_manifest(output)
        if done is not None:
            logger.info("%s is finished: %d cells; nothing to do", output.uri, done.n_cells)
            return done
    inspected = inspect(settings, job) if began is None else None
    output.require_writable()
    own = {"config": settings.model_dump(), "fingerprint": job.fingerprint.to_dict()}
    with connected(), nullcontext(tracker) if tracker else Tracker("embed", output, own) as run:
        workers = pool(settings)
        plan = make_plan(settings, job, *inspected, workers, output) if inspected else began
        assert plan is not None, "either this run made it or an earlier one"
        parts = run_plan(plan, job, workers, output, run)
        manifest = finish(plan, parts, job, output)
        if run is not tracker:
            for name in (PLAN, MANIFEST):
                run.log_artifact(name)
    return manifest


@dataclass(frozen=True)
class EmbedJob:
    """A request whose parts are known to be good.

    Attributes:
        source: Locator of the cells, snapshot pinned.
        checkpoint: The network.
        genes: Which var row is which token.
        rules: Token rules.
        precision: Arithmetic of the network.
        fingerprint: Identity of the result.
    """

    source: Source
    checkpoint: Checkpoint
    genes: GeneMap
    rules: TokenRules
    precision: str
    fingerprint: Fingerprint


def prepare(settings: EmbedSettings, began: Plan | None) -> EmbedJob:
    """Check atlas, checkpoint and genes, and find the identity of the result.

    Args:
        settings: What is asked for.
        began: The plan of an earlier run, whose snapshot is used again unless another is asked for.

    Raises:
        InputError: With found, expected and remedy.
    """
    earlier = began.fingerprint["cells"].get("snapshot") if began else None
    source = locate(settings.atlas, settings.model_copy(update={"snapshot": settings.snapshot or earlier}))
    checkpoint = read_checkpoint(settings.checkpoint)
    genes = harmonize_genes(source, checkpoint, settings)
    rules = TokenRules(max_length=settings.max_length, seed=settings.seed, ties=settings.ties)
    fingerprint = Fingerprint(
        model=model_identity(checkpoint, rules, settings.precision),
        cells={**source.identity(), "genes": genes.digest(), "obs_columns": list(settings.obs_columns)},
    )
    return EmbedJob(source, checkpoint, genes, rules, settings.precision, fingerprint)


def inspect(settings: EmbedSettings, job: EmbedJob) -> tuple[Int64Array, Coverage]:
    """Select the cells and look at their counts.

    Returns:
        Joinids of the selected cells, sorted, and the gene coverage report.

    Raises:
        AtlasError: If nothing is selected, or the counts are not counts.
        GeneCoverageError: If too few of them belong to genes of the vocabulary.
    """
    joinids = job.source.joinids()
    report = coverage(job.genes, *job.source.totals(joinids))
    for line in report.summary().splitlines():
        logger.info(line)
    report.require(settings.min_coverage, settings.atlas)
    return joinids, report


def harmonize_genes(source: Source, checkpoint: Checkpoint, settings: CellSettings) -> GeneMap:
    """Name the genes of an atlas in the words of the vocabulary."""
    return harmonize(
        source.var(),
        checkpoint.vocabulary.tokens,
        columns=settings.gene_columns,
        gene_table=settings.gene_table,
        columns_are_default=settings.gene_columns == CellSettings.model_fields["gene_columns"].default,
        where=source.uri,
    )


def model_identity(checkpoint: Checkpoint, rules: TokenRules, precision: str) -> dict[str, Any]:
    """What maps a cell to a vector, for the fingerprint."""
    return {
        "weights": checkpoint.weights_sha256,
        "vocabulary": checkpoint.vocabulary.sha256,
        "token_rules": RULES_VERSION,
        **asdict(rules),
        "precision": precision,
    }


def require_same(began: Plan, wanted: Fingerprint, output: Folder) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        OutputError: Naming both fingerprints and what differs.
    """
    there = Fingerprint.from_dict(began.fingerprint)
    if there != wanted:
        raise OutputError(
            f"{output.uri} holds run {there.digest[:12]}, this is {wanted.digest[:12]} ({wanted.differences(there)})",
            expected="the same atlas, checkpoint and token rules",
            remedy="give --output another folder",
        )


def make_plan(
    settings: EmbedSettings,
    job: EmbedJob,
    joinids: Int64Array,
    report: Coverage,
    workers: Pool,
    output: Folder,
) -> Plan:
    """Number the partitions and write the plan, before any cell is read for real."""
    plan = Plan(
        fingerprint=job.fingerprint.to_dict(),
        settings=settings.model_dump(mode="json"),
        partitions=cut(joinids, settings.cells_per_partition or workers.cells_per_partition),
        coverage=report.to_dict(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    sink = pa.BufferOutputStream()
    pq.write_table(job.genes.to_table(), sink, compression="zstd")
    output.write(GENES, sink.getvalue())
    output.write(PLAN, plan.to_json())
    return plan


def run_plan(plan: Plan, job: EmbedJob, workers: Pool, output: Folder, tracker: Tracker) -> dict[int, Part]:
    """Stream the partitions that are still to be done through Ray; returns all parts.

    Raises:
        RunError: If the work failed.
    """
    parts = committed_parts(output, job.fingerprint)
    todo = tuple(partition for partition in plan.partitions if partition.number not in parts)
    logger.info(
        "%d cells in %d partitions, %d of them done; %d %s actors, attention %s",
        plan.n_cells, len(plan.partitions), len(parts), workers.size, workers.device, job.precision,
    )  # fmt: skip
    if not todo:
        return parts
    progress = Progress(total=plan.n_cells, done=sum(part.n_cells for part in parts.values()))
    with progress:
        for receipt in stream(todo, job, workers, output):
            part = Part(**json.loads(receipt["part"]))
            parts[part.partition] = part
            progress.add(part.n_cells, part.n_tokens, receipt["embed_s"])
            tracker.log_metrics(progress.metrics(workers.size), step=len(parts), now=False)
    tracker.log_metrics(progress.metrics(workers.size), step=len(parts))
    return parts


def stream(todo: tuple[Partition, ...], job: EmbedJob, workers: Pool, output: Folder) -> Iterator[dict[str, Any]]:
    """The picture in the README: read and tokenise, embed on the actor pool, commit; one receipt per part."""
    checkpoint = Folder.at(job.checkpoint.folder)
    reading = ReadJob(job.source, output, checkpoint, job.rules)
    dataset = (
        ray.data.read_datasource(
            PartitionSource(reading, todo),
            override_num_blocks=len(todo),
            num_cpus=1 if workers.num_gpus else 0.5,
        )
        .map_batches(
            EmbedActor,
            fn_constructor_args=(checkpoint.uri, job.precision, workers.device, workers.threads),
            batch_size=1,
            batch_format="pyarrow",
            num_gpus=workers.num_gpus or None,
            num_cpus=workers.num_cpus,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=min(workers.size, len(todo)), max_concurrent_calls_per_actor=2
            ),
        )
        .map_batches(
            commit,
            fn_args=(output, job.fingerprint.digest),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0.25,
        )
    )
    yield from dataset.iter_rows()


class EmbedActor:
    """One copy of the network on one device; a call embeds one partition."""

    def __init__(self, checkpoint: str, precision: str, device: str, threads: int) -> None:
        set_threads(threads)
        self.embedder = Embedder(read_checkpoint(checkpoint), device=device, precision=precision)

    def __call__(self, row: pa.Table) -> pa.Table:
        """A row of TOKENS to a row of EMBEDDINGS."""
        tokens, values = from_row(row)
        started = time.monotonic()
        embeddings = self.embedder(tokens)
        n_tokens = len(tokens[BIN].combine_chunks().flatten())
        return as_row(embeddings, **values, n_tokens=n_tokens, embed_s=time.monotonic() - started)


def commit(row: pa.Table, output: Folder, fingerprint: str) -> pa.Table:
    """Write the part of one row; returns its receipt."""
    embeddings, values = from_row(row)
    part = write_part(
        output.folder(PARTS),
        embeddings,
        Partition(**json.loads(values["partition"])),
        fingerprint=fingerprint,
        n_tokens=values["n_tokens"],
    )
    return pa.table({"part": [json.dumps(asdict(part))], "embed_s": [values["embed_s"]]})


def finish(plan: Plan, parts: dict[int, Part], job: EmbedJob, output: Folder) -> Manifest:
    """Prove that every planned cell is committed once, and write the manifest.

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
        versions={
            "scgpt-ray": __version__,
            **{name: version(name) for name in ("ray", "torch", "pyarrow", "numpy")},
        },
    )
    output.write(MANIFEST, manifest.to_json())
    return manifest
