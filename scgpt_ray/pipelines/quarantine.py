"""Cells that cannot be read or embedded: found by halving their partitions, listed, and left out of the parts."""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from scgpt_ray.atlas.plan import Partition, Remainder
from scgpt_ray.errors import WorkerError
from scgpt_ray.pipelines.executor import Failure
from scgpt_ray.records import Plan, Quarantine, QuarantinedCells
from scgpt_ray.schema import Int64Array

logger = logging.getLogger(__name__)

_MOST_PARTITIONS = 4
"""Partitions that may fail in any run, however few it has, before it stops."""

_MOST_SPANS = 64
"""Spans of cells that are halved at a time; a run with more leaves the rest to the next one."""

Try = Callable[[tuple[Partition, ...]], Iterable[Failure]]
"""Reads and embeds cells without committing them; returns those that failed."""


def require_few(failed: Sequence[Failure], plan: Plan, max_failed: float) -> None:
    """Stop a run in which many partitions fail, before their cells are tried one by one.

    Raises:
        WorkerError: If more than `max_failed` of the partitions failed, and more than four (any, if it is 0).
    """
    most = max(_MOST_PARTITIONS, max_failed * len(plan.partitions)) if max_failed else 0
    if len(failed) > most:
        raise _stopped(f"{len(failed)} of {len(plan.partitions)} partitions failed", failed[-1], max_failed)


def require_few_cells(quarantine: Quarantine, plan: Plan, max_failed: float) -> None:
    """Stop a run that lost many cells.

    Raises:
        WorkerError: If more than `max_failed` of the cells failed, and more than a partition, or if all did.
    """
    largest = max(partition.n_cells for partition in plan.partitions)
    if quarantine.n_cells == plan.n_cells or quarantine.n_cells > max(largest, max_failed * plan.n_cells):
        lost = f"{quarantine.n_cells} of {plan.n_cells} cells failed ({Quarantine.file})"
        raise _stopped(lost, quarantine.cells[-1], max_failed)


def _stopped(what: str, last: Failure | QuarantinedCells, max_failed: float) -> WorkerError:
    number = last.partition if isinstance(last.partition, int) else last.partition.number
    reason = last.reason.removesuffix(".")
    return WorkerError(
        f"{what}, more than --max-failed {max_failed:g} allows; the last, in partition {number}: {reason}"
    )


def isolate(failed: Sequence[Failure], known: Quarantine, joinids: Int64Array, attempt: Try) -> Quarantine:
    """Find the cells because of which partitions failed.

    Cells are halved until those that fail stand alone. What an earlier run found is where this one begins.

    Args:
        failed: The partitions that failed.
        known: The quarantine of the earlier run.
        joinids: Sorted joinids of all selected cells.
        attempt: Tries some cells.
    """
    numbers = {failure.partition.number for failure in failed}
    suspects = _tried([(cells.partition, cells.ids) for cells in known.cells if cells.partition in numbers], attempt)
    numbers -= {cells.partition for cells in suspects}
    suspects += [whole(failure, joinids) for failure in failed if failure.partition.number in numbers]
    guilty: list[QuarantinedCells] = []
    while suspects:
        guilty += [cells for cells in suspects if cells.n_cells == 1]
        halves = [
            (cells.partition, ids) for cells in suspects if cells.n_cells > 1 for ids in np.array_split(cells.ids, 2)
        ]
        suspects = _tried(halves, attempt)
        if len(suspects) > _MOST_SPANS:
            guilty += suspects
            break
    return quarantine_of(guilty)


def _tried(groups: Sequence[tuple[int, Int64Array]], attempt: Try) -> list[QuarantinedCells]:
    """Those groups of cells, with the number of their partition, that fail."""
    if not groups:
        return []
    logger.info("trying %d groups of %d cells that failed", len(groups), sum(len(ids) for _, ids in groups))
    ids_of = {Partition.of(number, ids): ids for number, ids in groups}
    return [whole(failure, ids_of[failure.partition]) for failure in attempt(tuple(ids_of))]


def whole(failure: Failure, joinids: Int64Array) -> QuarantinedCells:
    """All cells of what failed, given its joinids or more."""
    ids = cells_of(failure.partition, joinids)
    return QuarantinedCells.of(failure.partition.number, ids, failure.reason, failure.log)


def quarantine_of(cells: Iterable[QuarantinedCells]) -> Quarantine:
    """The record of some cells, in order."""
    return Quarantine(cells=tuple(sorted(cells, key=lambda some: (some.partition, some.joinids))))


def cells_of(partition: Partition, joinids: Int64Array) -> Int64Array:
    """The joinids of a partition, of those of all selected cells."""
    first, last = np.searchsorted(joinids, (partition.first, partition.last + 1))
    return joinids[first:last]


def remainders(plan: Plan, quarantine: Quarantine, joinids: Int64Array) -> dict[int, Remainder | None]:
    """What can be embedded of the partitions with cells in quarantine, by partition; None for nothing."""
    numbers = sorted({cells.partition for cells in quarantine.cells})
    return {
        number: Remainder.without(
            plan.partitions[number], cells_of(plan.partitions[number], joinids), quarantine.ids(number)
        )
        for number in numbers
    }
