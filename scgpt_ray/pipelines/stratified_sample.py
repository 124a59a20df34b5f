"""A stratified sample of the reference by label: each shard offers candidates, and only these reach this process."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from scgpt_ray.mapping.label_table import encoded
from scgpt_ray.pipelines.reference import Reference, labels_that_meet
from scgpt_ray.schema import JOINID
from scgpt_ray.storage import Folder

_DRAW = "scgpt_ray.draw"


def draw_cells(
    reference: Reference, columns: Sequence[str], quotas: Mapping[str, int], condition: str | None, seed: int
) -> pa.Table:
    """Draw a given number of cells of each label, uniformly, the same for a seed.

    Every cell gets a random number, and the cells with the lowest ones are taken of each label: first in each shard,
    then among the candidates of all shards.

    Args:
        reference: The reference to sample.
        columns: Label columns; the first one defines the strata.
        quotas: Label as text -> number of cells; other labels, and null, give none.
        condition: Filter on the label columns, as checked by `Reference.require`; None for all cells.
        seed: Seed of the draw.

    Returns:
        soma_joinid and the columns, sorted by soma_joinid.
    """
    assert reference.executor is not None, "name an executor by Reference.on"
    calls = [
        (reference.folder, shard.labels, list(columns), dict(quotas), condition, [seed, number])
        for number, shard in enumerate(reference.index.shards)
    ]
    offered = pa.concat_tables(reference.executor.tasks(_offer, calls, cpus=0.5)).unify_dictionaries()
    return _lowest(offered, columns[0], quotas).drop_columns([_DRAW]).sort_by(JOINID)


def _offer(
    folder: Folder, name: str, columns: list[str], quotas: dict[str, int], condition: str | None, seed: list[int]
) -> pa.Table:
    cells = labels_that_meet(folder, name, [JOINID, *columns], condition)
    draws = pa.array(np.random.default_rng(seed).random(cells.num_rows))
    return _lowest(cells.append_column(_DRAW, draws), columns[0], quotas)


def _lowest(cells: pa.Table, column: str, quotas: Mapping[str, int]) -> pa.Table:
    """The cells of each label with the lowest random numbers."""
    names, code_N = encoded(cells[column].cast(pa.string()))
    # The last quota is that of cells without a label, whose code is -1.
    quota_L = np.array([*(quotas.get(name, 0) for name in names), 0], np.int64)
    order = np.lexsort((cells[_DRAW].to_numpy(), code_N))
    sorted_N = code_N[order]
    rank_N = np.arange(len(order)) - np.searchsorted(sorted_N, sorted_N)
    return cells.take(pa.array(order[rank_N < quota_L[sorted_N]]))
