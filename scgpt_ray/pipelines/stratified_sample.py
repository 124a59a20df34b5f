"""Stratified samples of the reference: each shard offers candidates, and only these reach this process.

Shapes: N cells of the sample, S strata, d width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from scgpt_ray.index.searcher import Searcher
from scgpt_ray.mapping.label_table import encoded
from scgpt_ray.pipelines.reference import Reference, labels_that_meet, unit_vectors
from scgpt_ray.records import ShardDescription
from scgpt_ray.schema import JOINID, Float32Matrix, Int64Array, known_texts
from scgpt_ray.storage import Folder

CELLS = "scgpt_ray.cells"
"""Column of the number of cells."""
LEAST_PER_GROUP = 20
"""Cells of a group in an even sample, if it has so many: of more groups than that allows, some are drawn."""

_DRAW = "scgpt_ray.draw"


def count_cells(reference: Reference, columns: Sequence[str], condition: str | None) -> pa.Table:
    """Count the cells of each combination of labels.

    Args:
        reference: The reference.
        columns: Label columns.
        condition: Filter on the label columns, as checked by `Reference.require`; None for all cells.

    Returns:
        The columns as text, null where a cell has none, and `CELLS`; a row for each combination that occurs.
    """
    assert reference.executor is not None, "name an executor by Reference.on"
    names = list(dict.fromkeys(columns))
    calls = [(reference.folder, shard, names, condition) for shard in reference.index.shards]
    return _total(pa.concat_tables(reference.executor.tasks(_count, calls, cpus=0.5)), names)


def _count(folder: Folder, shard: ShardDescription, columns: list[str], condition: str | None) -> pa.Table:
    cells = labels_that_meet(folder, shard, columns, condition)
    texts = pa.table({column: known_texts(cells[column]) for column in columns})
    return _total(texts.append_column(CELLS, pa.array(np.ones(len(texts), np.int64))), columns)


def _total(counted: pa.Table, columns: list[str]) -> pa.Table:
    totals = counted.group_by(columns).aggregate([(CELLS, "sum")])
    return totals.select([*columns, f"{CELLS}_sum"]).rename_columns([*columns, CELLS])


def even_quotas(available: Mapping[str, int], size: int, seed: int) -> dict[str, int]:
    """Share a sample evenly among groups.

    Args:
        available: Group -> its cells.
        size: Cells of the sample.
        seed: Of the draw among groups, where there are too many for `LEAST_PER_GROUP` cells of each.

    Returns:
        Group -> cells to draw: the same number of each, within one, or all of a group that has fewer; together `size`,
        or all that the drawn groups have.
    """
    most = max(1, size // LEAST_PER_GROUP)
    drawn = np.random.default_rng(seed).permutation(sorted(available))[:most].tolist()
    quotas: dict[str, int] = {}
    # The smallest first: what they lack is shared among the rest.
    for place, group in enumerate(sorted(drawn, key=lambda group: (available[group], group))):
        quotas[group] = min(available[group], (size - sum(quotas.values())) // (len(drawn) - place))
    return quotas


def vectors_of_cells(reference: Reference, joinids: Int64Array) -> Float32Matrix:
    """Vectors of some cells, float32 [N, d], of unit length, as precise as the index stores them.

    Args:
        reference: The reference.
        joinids: int64 [N], sorted, all of the reference.
    """
    assert reference.executor is not None, "name an executor by Reference.on"
    shared = reference.executor.share(joinids)
    calls = [(reference.folder, shard, shared) for shard in reference.index.shards]
    ids, vectors = zip(*reference.executor.tasks(_vectors, calls), strict=True)
    ids_N = np.concatenate(ids)
    order = np.argsort(ids_N, kind="stable")
    assert np.array_equal(ids_N[order], joinids), "a cell is missing"
    return np.concatenate(vectors)[order]


def _vectors(folder: Folder, shard: ShardDescription, joinids: Int64Array) -> tuple[Int64Array, Float32Matrix]:
    opened = Searcher(folder, [shard]).shards[0]
    rows = opened.rows_of(joinids)
    return np.asarray(opened.ids_N)[rows], unit_vectors(opened, rows)


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
        (reference.folder, shard, list(columns), dict(quotas), condition, [seed, number])
        for number, shard in enumerate(reference.index.shards)
    ]
    offered = pa.concat_tables(reference.executor.tasks(_offer, calls, cpus=0.5)).unify_dictionaries()
    return _lowest(offered, columns[0], quotas).drop_columns([_DRAW]).sort_by(JOINID)


def _offer(
    folder: Folder,
    shard: ShardDescription,
    columns: list[str],
    quotas: dict[str, int],
    condition: str | None,
    seed: list[int],
) -> pa.Table:
    cells = labels_that_meet(folder, shard, [JOINID, *columns], condition)
    draws = pa.array(np.random.default_rng(seed).random(cells.num_rows))
    return _lowest(cells.append_column(_DRAW, draws), columns[0], quotas)


def _lowest(cells: pa.Table, column: str, quotas: Mapping[str, int]) -> pa.Table:
    """The cells of each label with the lowest random numbers."""
    names, code_N = encoded(known_texts(cells[column]))
    # The last quota is that of cells without a label, whose code is -1.
    quota_L = np.array([*(quotas.get(name, 0) for name in names), 0], np.int64)
    order = np.lexsort((cells[_DRAW].to_numpy(), code_N))
    sorted_N = code_N[order]
    rank_N = np.arange(len(order)) - np.searchsorted(sorted_N, sorted_N)
    return cells.take(pa.array(order[rank_N < quota_L[sorted_N]]))
