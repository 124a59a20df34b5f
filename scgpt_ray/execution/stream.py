"""The picture in the README as a Ray Data pipeline: read and tokenise, embed on the actor pool, commit."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray.data

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.execution.cluster import Pool
from scgpt_ray.execution.partitions import PartitionSource, Reading, from_row
from scgpt_ray.parts.parts import PARTS, write_part
from scgpt_ray.storage import Folder


@dataclass(frozen=True)
class Stages:
    """What the three operators do.

    Attributes:
        reading: Makes TOKENS of a partition, in read tasks.
        actor: Class of the actors; a call turns a row of TOKENS into a row of EMBEDDINGS, with `n_tokens`, `embed_s`
            (seconds it took) and `actor` (JSON of what it computes with) beside it.
        arguments: Of the class.
        output: Folder that the parts go to.
        fingerprint: Digest that every part carries.
    """

    reading: Reading
    actor: type
    arguments: tuple[Any, ...]
    output: Folder
    fingerprint: str


def stream(todo: tuple[Partition, ...], stages: Stages, workers: Pool) -> Iterator[dict[str, Any]]:
    """Run partitions through the stages; one receipt per committed part, in the order they are done."""
    dataset = (
        ray.data.read_datasource(
            PartitionSource(stages.reading, todo),
            override_num_blocks=len(todo),
            num_cpus=workers.read_cpus,
        )
        .map_batches(
            stages.actor,
            fn_constructor_args=stages.arguments,
            batch_size=1,
            batch_format="pyarrow",
            num_gpus=workers.num_gpus or None,
            num_cpus=workers.num_cpus,
            # Two calls at a time: one computes while Ray fetches and stores the rows of the other.
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=min(workers.size, len(todo)), max_concurrent_calls_per_actor=2
            ),
        )
        .map_batches(
            commit,
            fn_args=(stages.output, stages.fingerprint),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=workers.write_cpus,
        )
    )
    yield from dataset.iter_rows()


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
    receipt = {"part": json.dumps(asdict(part)), "embed_s": values["embed_s"], "actor": values["actor"]}
    return pa.Table.from_pylist([receipt])
