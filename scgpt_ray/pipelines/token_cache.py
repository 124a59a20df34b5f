"""Token files: the cells of atlases, tokenised once for all epochs of a training run, and committed like parts."""

import json
import logging
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.errors import WorkerError
from scgpt_ray.network.checkpoint_files import VOCABULARY_FILE, CheckpointFiles, read_vocabulary
from scgpt_ray.parts.manifest import GENES
from scgpt_ray.parts.token_file import TokenPart, committed_tokens, write_tokens
from scgpt_ray.pipelines.executor import Executor, Failure, Stages
from scgpt_ray.pipelines.partition_steps import ReadPartition
from scgpt_ray.pipelines.pretrain_request import AtlasJob, TrainingJob
from scgpt_ray.progress import Stage
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import tokenize
from scgpt_ray.training.dataset import AtlasTokens
from scgpt_ray.training.overlap import without_overlap
from scgpt_ray.training.split import NEITHER, VALIDATION, Split

logger = logging.getLogger(__name__)

TOKENS = "tokens"


@dataclass(frozen=True)
class CommitTokens:
    """TOKENS -> a committed token file.

    Attributes:
        place: Folder of the token files of an atlas.
        split: How cells are split into training and validation cells.
        label_column: Column of cell types, or None.
        domain_column: Column of domains, or None.
        fingerprint: Digest of what determines the tokens.
        where: The atlas, for messages.
    """

    place: Folder
    split: Split
    label_column: str | None
    domain_column: str | None
    fingerprint: str
    where: str

    def __call__(self, tokens: pa.Table, partition: Partition, _figures: dict[str, Any]) -> dict[str, Any]:
        """Write the file of a partition; the receipt is `part`, its footer."""
        side_N = self.split.sides(tokens, self.where)
        is_used = side_N != NEITHER
        part = write_tokens(
            self.place,
            tokens.filter(pa.array(is_used)),
            partition,
            side_N[is_used] == VALIDATION,
            fingerprint=self.fingerprint,
            label_column=self.label_column,
            domain_column=self.domain_column,
        )
        return {"part": asdict(part)}


@Stage("make token files")
def cache_tokens(job: TrainingJob, executor: Executor) -> tuple[AtlasTokens, ...]:
    """Make the token files that do not exist yet; returns all of them, by atlas.

    Training cells that are also validation cells are left out.
    """
    place = job.output.folder(TOKENS)
    place.write(VOCABULARY_FILE, json.dumps(dict(job.vocabulary.tokens)).encode())
    atlases = tuple(_cache_atlas(job, atlas, number, executor) for number, atlas in enumerate(job.atlases))
    atlases = without_overlap(atlases, job.settings.label_column, job.settings.domain_column)
    if n_left_out := sum(atlas.n_left_out for atlas in atlases):
        logger.info("%d training cells are also validation cells, by tokens or observation id: left out", n_left_out)
    return atlases


def _cache_atlas(job: TrainingJob, atlas: AtlasJob, number: int, executor: Executor) -> AtlasTokens:
    place = job.output.folder(f"{TOKENS}/atlas-{number}")
    committed = committed_tokens(place, job.tokens_fingerprint)
    # The folder may hold files of other partitions of the same cells.
    digests = {partition.number: partition.digest for partition in atlas.partitions}
    parts = {number: part for number, part in committed.items() if digests.get(number) == part.joinids}
    todo = tuple(partition for partition in atlas.partitions if partition.number not in parts)
    logger.info("%s: %d token files, %d of them done", atlas.source.uri, len(atlas.partitions), len(parts))
    if todo:
        sink = pa.BufferOutputStream()
        pq.write_table(atlas.genes.to_table(), sink, compression="zstd")
        place.write(GENES, sink.getvalue())
        for receipt in executor.stream(todo, _stages(job, atlas, place), None):
            if isinstance(receipt, Failure):
                raise WorkerError(f"partition {receipt.partition.number} of {atlas.source.uri} {receipt.reason}")
            part = TokenPart(**receipt["part"])
            parts[part.partition] = part
    return AtlasTokens(place, tuple(parts[partition.number] for partition in atlas.partitions))


def _stages(job: TrainingJob, atlas: AtlasJob, place: Folder) -> Stages:
    settings, vocabulary = job.settings, CheckpointFiles(job.output.folder(TOKENS).uri)
    return Stages(
        read=ReadPartition(
            atlas.source,
            place,
            atlas.genes.digest(),
            vocabulary,
            read_vocabulary(vocabulary).sha256,
            partial(tokenize, rules=job.rules),
        ),
        compute=None,
        arguments=(),
        commit=CommitTokens(
            place,
            job.split,
            settings.label_column,
            settings.domain_column,
            job.tokens_fingerprint,
            atlas.source.uri,
        ),
    )
