"""Atlases -> tokens -> files that training reads again and again, committed like parts."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.execution.partitions import PartitionSource, ReadJob, from_row
from scgpt_ray.network.checkpoint_files import VOCABULARY_FILE
from scgpt_ray.parts.manifest import GENES
from scgpt_ray.parts.token_file import TokenPart, committed_tokens, write_tokens
from scgpt_ray.pipelines.pretrain_request import AtlasJob, TrainingJob
from scgpt_ray.storage import Folder
from scgpt_ray.training.dataset import AtlasTokens
from scgpt_ray.training.split import validation

logger = logging.getLogger(__name__)

TOKENS = "tokens"


@dataclass(frozen=True)
class Split:
    """Which cells are kept out, and what of obs training reads.

    Attributes:
        condition: On obs columns, or None for a share.
        share: Of the cells.
        seed: Of the share.
        label_column: Of cell types, or None.
        domain_column: Of domains, or None.
    """

    condition: str | None
    share: float
    seed: int
    label_column: str | None
    domain_column: str | None


def keep_tokens(job: TrainingJob) -> tuple[AtlasTokens, ...]:
    """Make the files that are not there yet; all of them, by atlas."""
    place = job.output.folder(TOKENS)
    place.write(VOCABULARY_FILE, json.dumps(dict(job.vocabulary.tokens)).encode())
    return tuple(_keep_atlas(job, atlas, number) for number, atlas in enumerate(job.atlases))


def _keep_atlas(job: TrainingJob, atlas: AtlasJob, number: int) -> AtlasTokens:
    place = job.output.folder(f"{TOKENS}/atlas-{number}")
    there = committed_tokens(place, job.tokens_fingerprint)
    # A folder may hold files of another cut of the same cells.
    digests = {partition.number: partition.digest for partition in atlas.partitions}
    parts = {number: part for number, part in there.items() if digests.get(number) == part.joinids}
    todo = tuple(partition for partition in atlas.partitions if partition.number not in parts)
    logger.info("%s: %d files of tokens, %d of them there", atlas.source.uri, len(atlas.partitions), len(parts))
    if todo:
        sink = pa.BufferOutputStream()
        pq.write_table(atlas.genes.to_table(), sink, compression="zstd")
        place.write(GENES, sink.getvalue())
        for part in _stream(job, atlas, place, todo):
            parts[part.partition] = part
    return AtlasTokens(place, tuple(parts[partition.number] for partition in atlas.partitions))


def _stream(job: TrainingJob, atlas: AtlasJob, place: Folder, todo: tuple[Partition, ...]) -> list[TokenPart]:
    settings = job.settings
    split = Split(
        settings.validation_filter,
        settings.validation_share,
        settings.seed,
        settings.label_column,
        settings.domain_column,
    )
    reading = ReadJob(atlas.source, place, job.output.folder(TOKENS).uri, job.rules)
    dataset = ray.data.read_datasource(PartitionSource(reading, todo), override_num_blocks=len(todo)).map_batches(
        commit_tokens,
        fn_args=(place, split, job.tokens_fingerprint, atlas.source.uri),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0.25,
    )
    receipts = [json.loads(row["part"]) for row in dataset.iter_rows()]
    return [TokenPart(**values) for values in receipts]


def commit_tokens(row: pa.Table, place: Folder, split: Split, fingerprint: str, where: str) -> pa.Table:
    """Write the tokens of one row; returns its receipt."""
    tokens, values = from_row(row)
    part = write_tokens(
        place,
        tokens,
        Partition(**json.loads(values["partition"])),
        validation(tokens, split.condition, split.share, split.seed, atlas=PurePosixPath(place.uri).name, where=where),
        fingerprint=fingerprint,
        label_column=split.label_column,
        domain_column=split.domain_column,
    )
    return pa.Table.from_pylist([{"part": json.dumps(asdict(part))}])
