"""The matrix of counts in a SOMA experiment: finding it, and reading rows of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tiledbsoma as soma

from scgpt_ray.atlas.ragged import Part, as_part, blocks
from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import Int64Array

_SAMPLE_TILES = 4
_SAMPLE_CELLS_PER_TILE = 512
_PROBED = 4
"""Partitions that are read to see how many bytes that takes."""
_DENSE_SELECTION = 0.1
"""Share of a range of rows from which reading the whole range is cheaper than listing the rows."""


def find_measurement(experiment: Any, name: str, where: str) -> Any:
    """A measurement of an experiment; `where` starts the message of an error.

    Raises:
        AtlasError: If the experiment has no such measurement.
    """
    if name not in experiment.ms:
        raise AtlasError(
            f"{where}: no measurement {name}",
            expected=f"one of {', '.join(sorted(experiment.ms)) or '(none found)'}",
            remedy="name it with --measurement",
        )
    return experiment.ms[name]


def find_matrix(experiment: Any, measurement: str, layer: str, where: str) -> Any:
    """A layer of X, a SparseNDArray of cells x genes by joinid; `where` starts the message of an error.

    Raises:
        AtlasError: If the experiment has no such layer, or it is dense.
    """
    found = find_measurement(experiment, measurement, where)
    layers = found.X if "X" in found else {}
    if layer not in layers:
        raise AtlasError(
            f"{where}: measurement {measurement} has no X layer {layer}",
            expected=f"one of {', '.join(sorted(layers)) or '(none found)'}",
            remedy="name it with --layer",
        )
    matrix = layers[layer]
    if not isinstance(matrix, soma.SparseNDArray):
        raise AtlasError(
            f"{where}: X layer {layer} is a {type(matrix).__name__}",
            expected="a SparseNDArray",
            remedy="name a sparse layer with --layer, or ingest the matrix as sparse",
        )
    return matrix


def read_parts(matrix: Any, joinids: Int64Array) -> list[Part]:
    """Entries of at least these rows, in any order.

    Args:
        matrix: As `find_matrix` finds it.
        joinids: Sorted, at least one.

    Raises:
        SOMAError: If they cannot be read.
    """
    first, last = int(joinids[0]), int(joinids[-1])
    dense = len(joinids) >= _DENSE_SELECTION * (last - first + 1)
    tables = matrix.read((slice(first, last) if dense else joinids,)).tables()
    # Keep all tables of a block: TileDB may split the result anywhere, even within a cell.
    return [
        # Booleans are bits in Arrow, and must be copied.
        as_part(*(batch[name].to_numpy(zero_copy_only=False) for name in ("soma_dim_0", "soma_dim_1", "soma_data")))
        for table in tables
        for batch in table.to_batches()
    ]


@contextmanager
def _counted_bytes() -> Iterator[list[int]]:
    """A list that holds the bytes that TileDB has read in the block after it, in this process."""
    found: list[int] = []
    soma.tiledbsoma_stats_enable()
    soma.tiledbsoma_stats_reset()
    try:
        yield found
    finally:
        contexts = soma.tiledbsoma_stats_as_py()
        found.append(sum(int(each["counters"].get("Context.VFS.read_byte_num", 0)) for each in contexts))
        soma.tiledbsoma_stats_disable()


def sample(joinids: Int64Array) -> list[Int64Array]:
    """At most 512 cells of each of at most 4 tiles, evenly spaced."""
    tiles = blocks(joinids)
    chosen = np.linspace(0, len(tiles) - 1, min(_SAMPLE_TILES, len(tiles))).round().astype(int)
    picked = []
    for ids in (tiles[tile] for tile in chosen):
        places = np.linspace(0, len(ids) - 1, min(_SAMPLE_CELLS_PER_TILE, len(ids))).round().astype(int)
        picked.append(ids[places])
    return picked


def bytes_read(matrix: Any, partitions: Sequence[Int64Array]) -> int:
    """Bytes that TileDB reads for a sample and for all partitions, by its own count while some of them are read.

    They are more than the stored ones: partitions share tiles, and each result reads the values of its last tile again.

    Args:
        matrix: As `find_matrix` finds it.
        partitions: Sorted joinids of each; up to four are read.
    """
    probed = [partitions[place] for place in np.unique(np.linspace(0, len(partitions) - 1, _PROBED).astype(int))]
    with _counted_bytes() as once:
        for ids in sample(np.concatenate(partitions)):
            read_parts(matrix, ids)
    with _counted_bytes() as probe:
        for ids in (block for partition in probed for block in blocks(partition)):
            read_parts(matrix, ids)
    n_probed, n_all = sum(map(len, probed)), sum(map(len, partitions))
    return sum(once) + round(sum(probe) * n_all / n_probed)
