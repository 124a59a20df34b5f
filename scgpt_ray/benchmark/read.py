"""The stage `read`: cells/s and memory of reading a SOMA experiment in the Census' layout, and an .h5ad file.

Both are synthetic, in a temporary folder and in the page cache: this measures the CPU time of reading.
"""

import tempfile
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse

from scgpt_ray.atlas.anndata_file import AnnData
from scgpt_ray.atlas.plan import Partition, cut
from scgpt_ray.atlas.soma_file import CENSUS_LAYOUT, write_soma
from scgpt_ray.atlas.source import Source, locate
from scgpt_ray.benchmark.measurement import Figure, Setting, seconds_of
from scgpt_ray.benchmark.reader_processes import N_GENES, read_at_once, read_tokens, readers
from scgpt_ray.benchmark.synthetic import WHOLE_HUMAN_TOKENS, cell_lengths, synthetic_cells
from scgpt_ray.config import BenchmarkSettings, CellSettings
from scgpt_ray.schema import COUNT, GENE, Int64Array, ragged

CELLS = 8192
GENES = "2100"
"""Default number of genes per cell."""

CELLS_PER_PARTITION = 2048
LARGE_PARTITION = 8192
"""Cells of a partition for a GPU, used to measure memory."""

PASSES = 3
"""Passes over the whole atlas, of which the fastest counts, since the first ones fill the heap."""


def measure(settings: BenchmarkSettings) -> list[Figure]:
    """Measure reading alone, reading with tokenising, its memory, and several processes at once."""
    lengths = cell_lengths(settings.tokens or GENES, settings.cells or CELLS)
    with tempfile.TemporaryDirectory(prefix="scgpt-ray-benchmark-") as folder:
        atlas = synthetic_atlas(lengths)
        h5ad, experiment = Path(folder) / "cells.h5ad", Path(folder) / "cells.soma"
        atlas.write_h5ad(h5ad)
        write_soma(experiment, atlas, layout=CENSUS_LAYOUT)
        figures = []
        for kind, uri in (("soma", experiment), ("h5ad", h5ad)):
            setting: Setting = {"source": kind, "cells": len(lengths), "mean_genes": round(float(lengths.mean()))}
            figures += _figures(locate(str(uri), CellSettings()), setting, settings.readers)
    return figures


def synthetic_atlas(n_genes: Int64Array) -> AnnData:
    """A synthetic AnnData of cells x 60,694 genes, in CSR."""
    cells = synthetic_cells(n_genes, WHOLE_HUMAN_TOKENS)
    offsets, gene = ragged(cells[GENE])
    # Copies, since Arrow's memory is read-only.
    parts = (ragged(cells[COUNT])[1].copy(), gene.copy(), offsets)
    counts = scipy.sparse.csr_matrix(parts, shape=(len(n_genes), N_GENES))
    counts.sort_indices()
    return AnnData(
        counts,
        obs=pd.DataFrame(index=[f"cell{number}" for number in range(len(n_genes))]),
        var=pd.DataFrame(index=[f"GENE{number}" for number in range(N_GENES)]),
    )


def _figures(source: Source, setting: Setting, n_readers: int | None) -> list[Figure]:
    joinids = source.joinids()
    setting = {**setting, "cells_per_partition": CELLS_PER_PARTITION, "best_of_passes": PASSES}
    figures = _speed(source, cut(joinids, CELLS_PER_PARTITION), setting)
    figures.append(_memory(source, cut(joinids, LARGE_PARTITION), {**setting, "cells_per_partition": LARGE_PARTITION}))
    if n_readers is not None:
        # Small enough for all readers to get as many, even if the cells do not fill whole tiles.
        size = min(CELLS_PER_PARTITION, -(-len(joinids) // n_readers))
        figures += _scaling(source, cut(joinids, size), n_readers, {**setting, "cells_per_partition": size})
    return figures


def _speed(source: Source, partitions: tuple[Partition, ...], setting: Setting) -> list[Figure]:
    """Cells/s of this process."""
    read_tokens(source, partitions[:1])  # opens the source and compiles the kernels
    n_cells, figures = _n_cells(partitions), []
    for name, read in (("read", _read), ("read and tokens", read_tokens)):
        work = partial(read, source, partitions)
        # CPU time does not depend on other programs.
        for clock, unit in ((time.process_time, "cells per CPU second"), (time.perf_counter, "cells/s")):
            seconds = min(seconds_of(work, clock) for _ in range(PASSES))
            figures.append(Figure("read", name, n_cells / seconds, unit, setting))
    return figures


def _read(source: Source, partitions: Sequence[Partition]) -> None:
    genes = np.arange(N_GENES, dtype=np.int32)
    for partition in partitions:
        deque(source.read(partition, genes), maxlen=0)


def _memory(source: Source, partitions: tuple[Partition, ...], setting: Setting) -> Figure:
    """Peak memory of a process that only reads and makes tokens."""
    with readers(1) as processes:
        [peak] = max(read_at_once(processes, source, [partitions]) for _ in range(PASSES))
    return Figure("read", "peak memory of a reader", peak / 1e6, "MB", setting)


def _scaling(source: Source, partitions: tuple[Partition, ...], n_readers: int, setting: Setting) -> list[Figure]:
    """Cells/s in wall time, of one process and of several that share the work."""
    n_cells = _n_cells(partitions)
    alone = [partitions, *[()] * (n_readers - 1)]
    together = [partitions[reader::n_readers] for reader in range(n_readers)]
    with readers(n_readers) as processes:
        read_at_once(processes, source, [partitions[:1]] * n_readers)  # compiles the kernels
        # In turns, so that other load of the machine affects both alike.
        seconds = [
            [seconds_of(partial(read_at_once, processes, source, shares)) for shares in (alone, together)]
            for _ in range(PASSES)
        ]
    one_s, several_s = (min(passes) for passes in zip(*seconds, strict=True))
    return [
        Figure("read", "read and tokens, 1 process", n_cells / one_s, "cells/s", setting),
        Figure("read", f"read and tokens, {n_readers} processes", n_cells / several_s, "cells/s", setting),
        Figure("read", f"ratio of {n_readers} processes to 1", one_s / several_s, "", setting),
    ]


def _n_cells(partitions: Sequence[Partition]) -> int:
    return sum(partition.n_cells for partition in partitions)
