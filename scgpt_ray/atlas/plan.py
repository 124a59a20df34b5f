"""The plan: which cells make which partition, fixed before any cell is read."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from scgpt_ray.errors import ReferenceSetError, WorkerError
from scgpt_ray.schema import Int64Array

_FORMAT = 1


def digest_joinids(joinids: Int64Array) -> str:
    """The first 16 hex digits of the SHA-256 of joinids as little-endian int64."""
    return hashlib.sha256(joinids.astype("<i8").tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Partition:
    """A numbered set of cells: those that the filter selects between the joinids `first` and `last`, inclusive.

    The joinids are not stored. A reader selects the range at the same snapshot, and checks the number of cells and
    the digest of their joinids.
    """

    number: int
    first: int
    last: int
    n_cells: int
    digest: str

    def require(self, joinids: Int64Array, where: str) -> None:
        """Require that these are the planned joinids, in order.

        Raises:
            WorkerError: If the atlas has changed since the plan was made.
        """
        if len(joinids) != self.n_cells or digest_joinids(joinids) != self.digest:
            raise WorkerError(
                f"{where}: the atlas has changed since the plan was made: partition {self.number} (soma_joinid "
                f"{self.first} to {self.last}) selects {len(joinids)} cells, not the {self.n_cells} planned; "
                "start again in a new output folder"
            )


def cut(joinids: Int64Array, cells_per_partition: int, *, tile: int = 2048) -> tuple[Partition, ...]:
    """Cut cells into partitions of near-equal size.

    Reading one cell costs reading its whole tile of rows. Partitions that can hold a tile therefore end at tile
    boundaries, and smaller ones do not cross them.

    Args:
        joinids: Sorted unique joinids of the selected cells.
        cells_per_partition: Largest number of cells in a partition, >= 1.
        tile: Rows of a storage tile; tile number = joinid // tile.

    Returns:
        Partitions in order of joinid, numbered from 0; empty without cells.
    """
    assert cells_per_partition >= 1
    assert (np.diff(joinids) > 0).all(), "joinids are sorted and unique"
    if not len(joinids):
        return ()
    tile_ends = np.append(np.flatnonzero(np.diff(joinids // tile)) + 1, len(joinids))
    ends = (
        _pack_evenly(tile_ends, cells_per_partition)
        if cells_per_partition >= tile
        else _split_tiles(tile_ends, cells_per_partition)
    )
    pieces = np.split(joinids, ends[:-1])
    return tuple(
        Partition(number, int(ids[0]), int(ids[-1]), len(ids), digest_joinids(ids)) for number, ids in enumerate(pieces)
    )


def _split_tiles(tile_ends: Int64Array, capacity: int) -> list[int]:
    ends: list[int] = []
    start = 0
    for end in tile_ends.tolist():
        pieces = -(-(end - start) // capacity)
        ends.extend(start + (end - start) * piece // pieces for piece in range(1, pieces + 1))
        start = end
    return ends


def _pack_evenly(tile_ends: Int64Array, capacity: int) -> list[int]:
    """Pack whole tiles into as few partitions as greedy packing, with the largest one as small as possible."""
    fewest = len(_pack(tile_ends, capacity))
    too_small, enough = int(np.diff(tile_ends, prepend=0).max()) - 1, capacity
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if len(_pack(tile_ends, middle)) > fewest:
            too_small = middle
        else:
            enough = middle
    return _pack(tile_ends, enough)


def _pack(tile_ends: Int64Array, capacity: int) -> list[int]:
    ends = [0]
    while ends[-1] < tile_ends[-1]:
        ends.append(int(tile_ends[np.searchsorted(tile_ends, ends[-1] + capacity, side="right") - 1]))
    return ends[1:]


@dataclass(frozen=True)
class Plan:
    """All partitions of a run, with what fixes their numbers and what was asked for."""

    fingerprint: dict[str, Any]
    """What changes the numbers of the output."""
    settings: dict[str, Any]
    """The settings of the run that made the plan."""
    partitions: tuple[Partition, ...]
    coverage: dict[str, Any]
    """The gene coverage report that the run began with."""
    created: str
    """When the plan was made, ISO 8601."""

    @property
    def n_cells(self) -> int:
        """Cells of all partitions."""
        return sum(partition.n_cells for partition in self.partitions)

    def to_json(self) -> bytes:
        """The plan as JSON; partitions are stored by column, about 60 bytes each."""
        parts = self.partitions
        content = {
            "format": _FORMAT,
            "created": self.created,
            "n_cells": self.n_cells,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "coverage": self.coverage,
            "partitions": {
                "first": [part.first for part in parts],
                "last": [part.last for part in parts],
                "n_cells": [part.n_cells for part in parts],
                "digest": [part.digest for part in parts],
            },
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> "Plan":
        """Read a plan back.

        Args:
            content: What `to_json` wrote.
            where: The file, for messages.

        Raises:
            ReferenceSetError: If it is not a plan, or contradicts itself.
        """
        try:
            return _plan(json.loads(content))
        except (ValueError, TypeError, KeyError) as error:
            raise ReferenceSetError(
                f"{where}: {type(error).__name__}: {error}",
                expected=f"a plan.json of format {_FORMAT}, whole and unchanged",
                remedy="restore the file, or start again in a new output folder",
            ) from error


def _plan(values: dict[str, Any]) -> Plan:
    if values["format"] != _FORMAT:
        raise ValueError(f"format {values['format']!r}")
    names = ("partitions", "fingerprint", "settings", "coverage")
    if not all(isinstance(values[name], dict) for name in names):
        raise TypeError(f"{', '.join(names)} are mappings")
    columns, fingerprint, settings, coverage = (values[name] for name in names)
    rows = zip(*(columns[name] for name in ("first", "last", "n_cells", "digest")), strict=True)
    partitions = tuple(
        Partition(number, int(first), int(last), int(n_cells), str(digest))
        for number, (first, last, n_cells, digest) in enumerate(rows)
    )
    end = -1
    for part in partitions:
        if not (end < part.first <= part.last and 1 <= part.n_cells <= part.last - part.first + 1):
            raise ValueError(f"partition {part.number} is out of order or of an impossible size")
        end = part.last
    plan = Plan(fingerprint, settings, partitions, coverage, str(values["created"]))
    if plan.n_cells != values["n_cells"]:
        raise ValueError(f"{plan.n_cells} cells in partitions, {values['n_cells']} in all")
    return plan
