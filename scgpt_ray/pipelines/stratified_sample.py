"""A sample of the reference by label: each shard offers its share, and only that passes through this process."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from scgpt_ray.mapping.label_table import encoded
from scgpt_ray.pipelines.reference import Reference, labels_that_meet
from scgpt_ray.schema import JOINID
from scgpt_ray.storage import Folder

_LOT = "scgpt_ray.lot"


def draw_cells(
    reference: Reference, columns: Sequence[str], quotas: Mapping[str, int], condition: str | None, seed: int
) -> pa.Table:
    """Draw so many cells of each label, all alike, the same for a seed.

    Every cell draws a lot, and of each label those with the lowest are taken: first in each shard, then of what the
    shards offer.

    Args:
        reference: Whose cells.
        columns: Label columns, first the one whose labels count.
        quotas: Text of a label -> cells; other labels, and null, give none.
        condition: On the label columns, as `Reference.require` allows it; None for all cells.
        seed: Of the lots.

    Returns:
        soma_joinid and the columns, in order of soma_joinid.
    """
    assert reference.executor is not None, "name an executor by Reference.on"
    calls = [
        (reference.folder, shard.labels, list(columns), dict(quotas), condition, [seed, number])
        for number, shard in enumerate(reference.index.shards)
    ]
    offered = pa.concat_tables(reference.executor.tasks(_offer, calls, cpus=0.5)).unify_dictionaries()
    return _lowest(offered, columns[0], quotas).drop_columns([_LOT]).sort_by(JOINID)


def _offer(
    folder: Folder, name: str, columns: list[str], quotas: dict[str, int], condition: str | None, seed: list[int]
) -> pa.Table:
    cells = labels_that_meet(folder, name, [JOINID, *columns], condition)
    lots = pa.array(np.random.default_rng(seed).random(cells.num_rows))
    return _lowest(cells.append_column(_LOT, lots), columns[0], quotas)


def _lowest(cells: pa.Table, column: str, quotas: Mapping[str, int]) -> pa.Table:
    """Of each label the cells with the lowest lots."""
    names, code_N = encoded(cells[column].cast(pa.string()))
    # The last one is for cells without a label, whose code is -1.
    quota_L = np.array([*(quotas.get(name, 0) for name in names), 0], np.int64)
    order = np.lexsort((cells[_LOT].to_numpy(), code_N))
    sorted_N = code_N[order]
    rank_N = np.arange(len(order)) - np.searchsorted(sorted_N, sorted_N)
    return cells.take(pa.array(order[rank_N < quota_L[sorted_N]]))
