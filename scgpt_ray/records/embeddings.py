"""The records of embeddings: what was planned, what failed, what is there, and what changed."""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.identity import Fingerprint
from scgpt_ray.records.record import Count, FileName, Record, Size
from scgpt_ray.schema import Int64Array


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
    parts: dict[FileName, Size]
    """File name -> rows, in order of partition."""
    digests: list[str]
    """SHA-256 of the data of each part; see `Part`."""
    coverage: dict[str, Any]
    """The gene coverage report."""
    versions: dict[str, str]
    """Package -> version of the run that finished it."""
    actors: list[dict[str, Any]] = Field(default_factory=list)
    """What the actors computed with, of all runs, each different description once; see `Embedder.describe`."""

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
