"""The JSON files that runs leave in their folders, and what each of them must hold.

    plan.json             embed: which cells make which partition, written before any cell is read
    quarantine.json       embed: cells that could not be read or embedded; absent if there are none
    manifest.json         embed: what a finished run made, written last
    changes.json          refresh: which cells differ from those of the earlier embeddings
    index.json            index: what a search needs to know, written last; README.md has it as text
    shard-00000.json      index: the commit marker of a shard
    request.json          pretrain: what was asked for

A file is read as a whole or refused: with a key that is unknown or missing, a value of another type, or one that
contradicts the rest.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.schema import Int64Array
from scgpt_ray.storage import Folder

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """A JSON file: frozen, its keys and values checked when it is made and when it is read."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    file: ClassVar[str]
    """Name in its folder."""
    remedy: ClassVar[str]
    """What to do about a file that cannot be used."""
    indent: ClassVar[int | None] = 1

    @classmethod
    def read(cls, folder: Folder) -> Self | None:
        """The record of a folder; None where it has none.

        Raises:
            ReferenceSetError: If the file cannot be used.
        """
        return cls.from_json(folder.read(cls.file), folder.where(cls.file)) if folder.has(cls.file) else None

    def write(self, folder: Folder) -> None:
        """Put the file in its place, whole or not at all."""
        folder.write(self.file, self.to_json())

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Self:
        """Read the content of a file.

        Args:
            content: What `to_json` wrote.
            where: The file, for messages.

        Raises:
            ReferenceSetError: If it is torn, of another format, or not what this version writes.
        """
        try:
            record = cls.model_validate_json(content)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            problem = ": ".join(filter(None, [".".join(map(str, detail["loc"])), detail["msg"]]))
        else:
            # Nothing is left to a default: what lacks a key was not written here.
            absent = sorted(cls.model_fields.keys() - record.model_fields_set)
            if not absent:
                return record
            problem = f"{absent[0]}: Field required"
        raise ReferenceSetError(
            f"{where} cannot be used: {problem}",
            expected=f"the {cls.file} of this version of scgpt-ray, whole and unchanged",
            remedy=cls.remedy,
        )

    def to_json(self) -> bytes:
        """The content of the file; equal for equal records."""
        return self.model_dump_json(indent=self.indent).encode()

    def replace(self, **values: Any) -> Self:
        """A copy with other values, checked as a whole."""
        return type(self)(**{**dict(self), **values})


class Plan(Record):
    """All partitions of an embed run, with what fixes their numbers and what was asked for."""

    file = "plan.json"
    remedy = "restore the file, or start again in a new output folder"
    indent = None  # an atlas has 10,000 partitions

    format: Literal[2] = 2
    created: str
    """When the plan was made, ISO 8601."""
    fingerprint: Fingerprint
    """What changes the numbers of the output."""
    settings: dict[str, Any]
    """The settings of the run that made the plan."""
    coverage: dict[str, Any]
    """The gene coverage report that the run began with."""
    partitions: tuple[Partition, ...]
    """In the order of their numbers, and of their cells."""

    @property
    def n_cells(self) -> int:
        """Cells of all partitions."""
        return sum(partition.n_cells for partition in self.partitions)

    @model_validator(mode="after")
    def _partitions_follow_each_other(self) -> Self:
        end = -1
        for number, part in enumerate(self.partitions):
            is_possible = end < part.first <= part.last and 1 <= part.n_cells <= part.last - part.first + 1
            if part.number != number or not is_possible:
                raise ValueError(f"partition {number} is out of order or of an impossible size")
            end = part.last
        return self


@dataclass(frozen=True)
class QuarantinedCells:
    """Cells of a partition that failed together."""

    partition: Count
    """Number of the partition."""
    n_cells: Size
    joinids: tuple[tuple[Count, Count], ...]
    """Their joinids, as ranges with both ends."""
    reason: str
    """Why the last attempt failed."""
    log: tuple[str, ...]
    """Last lines of the traceback or of the log of the worker."""

    @classmethod
    def of(cls, partition: int, joinids: Int64Array, reason: str, log: tuple[str, ...]) -> "QuarantinedCells":
        """Describe some cells, by their sorted joinids."""
        runs = np.split(joinids, np.flatnonzero(np.diff(joinids) != 1) + 1)
        ranges = tuple((int(run[0]), int(run[-1])) for run in runs)
        return cls(partition, len(joinids), ranges, reason, log)

    @property
    def ids(self) -> Int64Array:
        """Their joinids, sorted, int64 [n_cells]."""
        return np.concatenate([np.arange(first, last + 1, dtype=np.int64) for first, last in self.joinids])


class Quarantine(Record):
    """Cells that could not be read or embedded; the next run tries them again."""

    file = "quarantine.json"
    remedy = "delete it, with the manifest.json of its folder, and run the same embed command again"

    format: Literal[1] = 1
    cells: tuple[QuarantinedCells, ...]
    """In the order of their partitions and joinids."""

    @property
    def n_cells(self) -> int:
        """Number of these cells."""
        return sum(cells.n_cells for cells in self.cells)

    def ids(self, partition: int) -> Int64Array:
        """Joinids of these cells of a partition, sorted, int64."""
        found = [cells.ids for cells in self.cells if cells.partition == partition]
        return np.sort(np.concatenate(found)) if found else np.array([], np.int64)

    @model_validator(mode="after")
    def _ranges_hold_the_cells(self) -> Self:
        for cells in self.cells:
            held = sum(last - first + 1 for first, last in cells.joinids)
            if held != cells.n_cells:
                raise ValueError(f"partition {cells.partition}: {cells.n_cells} cells, but {held} in its ranges")
        return self


class PretrainRequest(Record):
    """What fixes the result of training; equal requests give equal checkpoints."""

    file = "request.json"
    remedy = "restore the file, or start again in a new output folder"

    format: Literal[2] = 2
    settings: dict[str, Any]
    """Those that change a number, without those that name a place."""
    atlases: list[dict[str, Any]]
    """Identity of each atlas, with the digest of its genes."""
    vocabulary: str
    """Digest."""
    checkpoint: str | None
    """Digest of the weights that training starts from."""
    token_rules: int


class Manifest(Record):
    """A finished set of embeddings."""

    file = "manifest.json"
    remedy = "run embed again into a new folder"

    format: Literal[2] = 2
    fingerprint: Fingerprint
    """What made the numbers."""
    n_cells: Count
    """Rows in all parts together: every planned cell but those in quarantine."""
    n_quarantined: Count
    """Planned cells that could not be read or embedded; quarantine.json lists them."""
    n_empty: Count
    """Cells without an embedding: no count of a gene in the vocabulary."""
    n_tokens: Count
    """Tokens that went through the network."""
    dimension: Size
    """Width of the embedding."""
    obs_columns: list[str]
    """Columns carried along."""
    parts: dict[str, Size]
    """File name -> rows, in order of partition."""
    digests: list[str]
    """SHA-256 of the data of each part; see `Part`."""
    coverage: dict[str, Any]
    """The gene coverage report."""
    versions: dict[str, str]
    """Package -> version of the run that finished it."""
    actors: list[dict[str, Any]] = Field(default_factory=list)
    """What the actors of that run computed with, each different description once; see `Embedder.describe`."""

    @model_validator(mode="after")
    def _parts_hold_the_cells(self) -> Self:
        if len(self.digests) != len(self.parts):
            raise ValueError(f"{len(self.parts)} parts, but {len(self.digests)} digests")
        held = sum(self.parts.values())
        if held != self.n_cells or self.n_empty > self.n_cells:
            raise ValueError(f"{self.n_cells} cells, {self.n_empty} of them empty, but {held} rows in its parts")
        return self

    def text(self) -> str:
        """A line for people."""
        lost = f"; {self.n_quarantined} cells are in {Quarantine.file}" if self.n_quarantined else ""
        return f"{self.n_cells} cells embedded ({self.n_empty} without tokens) in {len(self.parts)} parts{lost}"

    def to_dict(self) -> dict[str, Any]:
        """The main figures, for programs."""
        return {
            "fingerprint": self.fingerprint.digest,
            "n_cells": self.n_cells,
            "n_quarantined": self.n_quarantined,
            "n_empty": self.n_empty,
            "n_tokens": self.n_tokens,
            "parts": len(self.parts),
        }


@dataclass(frozen=True)
class ChangeCounts:
    """Cells of a data set, earlier and later."""

    added: Count
    """New cells."""
    carried: Count
    """Cells of equal content; their vectors were copied, unless all cells were embedded anew."""
    changed: Count
    """Cells with other counts."""
    removed: Count
    """Cells that are no longer there."""


class Changes(Record):
    """How refreshed embeddings differ from the earlier ones."""

    file = "changes.json"
    remedy = "delete it, and run the same refresh command again"

    format: Literal[1] = 1
    status: Literal["nothing_new", "refreshed"]
    """nothing_new: no cell was added, changed or removed."""
    earlier: str
    """Digest of the fingerprint of the earlier embeddings."""
    later: str
    """That of the refreshed ones."""
    earlier_folder: str
    identified_by: tuple[str, ...]
    """Columns that identify a cell in both."""
    datasets: dict[str, ChangeCounts]
    """Counts by data set."""

    def total(self, kind: str) -> int:
        """Sum of a count over data sets."""
        return sum(getattr(counts, kind) for counts in self.datasets.values())

    def text(self) -> str:
        """A line for people."""
        counts = ", ".join(f"{self.total(kind)} {kind}" for kind in ("added", "carried", "changed", "removed"))
        return f"{self.status.replace('_', ' ')}: {counts}"

    def to_dict(self) -> dict[str, Any]:
        """The main figures, for programs."""
        kinds = ("added", "carried", "changed", "removed")
        return {"status": self.status, "fingerprint": self.later, **{kind: self.total(kind) for kind in kinds}}


@dataclass(frozen=True)
class ShardDescription:
    """The files of a shard and what they hold; names are relative to the index folder."""

    name: str
    n_cells: Count
    labels: str
    ids: str
    vectors: str | None
    """None where the index itself is exact."""

    @classmethod
    def of(cls, number: int, n_cells: int, *, is_exact: bool) -> "ShardDescription":
        """Name the files of a shard by its number."""
        return cls(
            name=f"shard-{number:05d}.faiss",
            n_cells=n_cells,
            labels=f"labels-{number:05d}.parquet",
            ids=f"ids-{number:05d}.npy",
            vectors=None if is_exact else f"vectors-{number:05d}.npy",
        )

    @property
    def files(self) -> list[str]:
        """All of them, without the commit marker."""
        return [name for name in (self.name, self.ids, self.vectors, self.labels) if name is not None]


class CommitMarker(Record):
    """The commit marker of a shard, written last."""

    file = "shard-00000.json"
    remedy = "build the index again"

    request: str
    """Digest of what decides the content of the shard."""
    shard: ShardDescription
    bytes: dict[str, Size]
    """File name -> size."""


class IndexDescription(Record):
    """All that a search needs to know, and what was measured when the index was built."""

    file = "index.json"
    remedy = "build the index again with this version of scgpt-ray"

    format: Literal[4] = 4
    metric: Literal["cosine"] = "cosine"
    request: dict[str, Any]
    """What was asked for, with defaults filled in; equal requests give equal indexes."""
    factory: str
    """faiss factory string of the template."""
    d: Size
    """Width of the vectors."""
    n_cells: Count
    """Vectors in all shards together."""
    nprobe: Size
    """Inverted lists to look into for the recall below."""
    rerank: Count
    """Candidates of a shard that are ranked again by their vectors, at least ten a neighbour; 0 for none."""
    recall_at_10: Fraction
    """Part of the true ten nearest neighbours found, measured on a sample."""
    recall_queries: Count
    """Cells in that sample."""
    shards: tuple[ShardDescription, ...]
    """In the order of their numbers."""
    label_columns: tuple[str, ...]
    """Columns of the label tables, without soma_joinid."""
    fingerprint: Fingerprint
    """Of the first embeddings; a query must be embedded with the same model."""
    embeddings: str
    """Where the first embeddings came from."""
    appended: tuple[str, ...] = ()
    """Where those came from that were added later."""
    license: str = "not stated"
    """Licence of the index, for those who are given it."""

    @model_validator(mode="after")
    def _shards_hold_the_cells(self) -> Self:
        held = sum(shard.n_cells for shard in self.shards)
        if held != self.n_cells:
            raise ValueError(f"{self.n_cells} cells, but {held} in its shards")
        return self

    def text(self) -> str:
        """A line for people."""
        return (
            f"{self.n_cells} cells indexed as {self.factory} in {len(self.shards)} shards, recall@10 "
            f"{self.recall_at_10:.4f} at nprobe {self.nprobe}, rerank {self.rerank}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The main figures, for programs."""
        return {
            "factory": self.factory,
            "n_cells": self.n_cells,
            "shards": len(self.shards),
            "nprobe": self.nprobe,
            "rerank": self.rerank,
            "recall_at_10": self.recall_at_10,
        }
