"""Partitions: which cells are read together, fixed before any cell is read."""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from scgpt_ray.errors import WorkerError
from scgpt_ray.schema import Int64Array

_BLOCK = 2**20
"""Joinids compared at a time."""


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

    @classmethod
    def of(cls, number: int, joinids: Int64Array) -> "Partition":
        """The partition of sorted unique joinids, at least one."""
        return cls(number, int(joinids[0]), int(joinids[-1]), len(joinids), digest_joinids(joinids))

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


@dataclass(frozen=True)
class Remainder(Partition):
    """The cells of a partition without some of them; `digest` is theirs.

    Attributes:
        pieces: The cells between those that are left out, as partitions that can be read.
    """

    pieces: tuple[Partition, ...]

    @classmethod
    def without(cls, partition: Partition, joinids: Int64Array, left_out: Int64Array) -> "Remainder | None":
        """A partition without some of its cells; None if no cell remains.

        Args:
            partition: The planned partition.
            joinids: Its joinids, sorted.
            left_out: The joinids to leave out.
        """
        partition.require(joinids, "the plan")
        keep = ~np.isin(joinids, left_out)
        if not keep.any():
            return None
        runs = np.split(joinids, np.flatnonzero(np.diff(keep)) + 1)
        pieces = tuple(Partition.of(partition.number, run) for run in runs if run[0] not in left_out)
        return cls(**asdict(Partition.of(partition.number, joinids[keep])), pieces=pieces)


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
    if not len(joinids):
        return ()
    tile_ends = _tile_ends(joinids, tile)
    ends = (
        _pack_evenly(tile_ends, cells_per_partition)
        if cells_per_partition >= tile
        else _split_tiles(tile_ends, cells_per_partition)
    )
    pieces = np.split(joinids, ends[:-1])
    return tuple(Partition.of(number, ids) for number, ids in enumerate(pieces))


def _tile_ends(joinids: Int64Array, tile: int) -> Int64Array:
    """Where the cells of each tile end, int64 [tiles]; in blocks, as 100 million joinids alone take 0.8 GB."""
    ends = [np.empty(0, np.int64)]
    for start in range(0, len(joinids), _BLOCK):
        block = joinids[start : start + _BLOCK + 1]
        assert (np.diff(block) > 0).all(), "joinids are sorted and unique"
        ends.append(start + 1 + np.flatnonzero(np.diff(block // tile)))
    return np.append(np.concatenate(ends), len(joinids))


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
