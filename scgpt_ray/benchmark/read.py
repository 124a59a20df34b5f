"""The stage `read`: cells/s of one core from a SOMA experiment in the Census' layout, and from an .h5ad file.

Both are made up in a temporary folder, so the disk's cache is warm: this is the CPU's share of reading.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse

from scgpt_ray.benchmark.figures import Figure, seconds_of
from scgpt_ray.benchmark.made_up import WHOLE_HUMAN_TOKENS, cell_lengths, made_up_cells
from scgpt_ray.cells.anndata_file import AnnData
from scgpt_ray.cells.plan import Partition, cut
from scgpt_ray.cells.soma_file import CENSUS_LAYOUT, write_soma
from scgpt_ray.cells.source import Source, locate
from scgpt_ray.config import CellSettings
from scgpt_ray.model.tokens import TokenRules, tokenize
from scgpt_ray.model.vocabulary import SPECIALS, Vocabulary
from scgpt_ray.schema import COUNT, GENE, Int64Array, ragged

CELLS = 4096
GENES = "2100"
"""Genes of a cell unless told otherwise."""

CELLS_PER_PARTITION = 2048
PASSES = 3
"""Over the whole atlas, of which the fastest counts: the first ones fill the heap."""

N_GENES = WHOLE_HUMAN_TOKENS - len(SPECIALS)


def benchmark_read(tokens: str | None, n_cells: int | None) -> list[Figure]:
    """Measure reading alone, and reading with tokenising.

    Args:
        tokens: Genes of a cell: a number or `ragged`; None for 2,100.
        n_cells: Cells of the atlas.
    """
    lengths = cell_lengths(tokens or GENES, n_cells or CELLS)
    with tempfile.TemporaryDirectory(prefix="scgpt-ray-benchmark-") as folder:
        atlas = made_up_atlas(lengths)
        h5ad, experiment = Path(folder) / "cells.h5ad", Path(folder) / "cells.soma"
        atlas.write_h5ad(h5ad)
        write_soma(experiment, atlas, layout=CENSUS_LAYOUT)
        return [*_figures("soma", str(experiment), lengths), *_figures("h5ad", str(h5ad), lengths)]


def made_up_atlas(n_genes: Int64Array) -> AnnData:
    """Cells x 60,694 genes as CSR."""
    cells = made_up_cells(n_genes, WHOLE_HUMAN_TOKENS)
    offsets, gene = ragged(cells[GENE])
    # Copies, for Arrow's memory is read-only.
    parts = (ragged(cells[COUNT])[1].copy(), gene.copy(), offsets)
    counts = scipy.sparse.csr_matrix(parts, shape=(len(n_genes), N_GENES))
    counts.sort_indices()
    return AnnData(
        counts,
        obs=pd.DataFrame(index=[f"cell{number}" for number in range(len(n_genes))]),
        var=pd.DataFrame(index=[f"GENE{number}" for number in range(N_GENES)]),
    )


def _figures(kind: str, uri: str, n_genes: Int64Array) -> list[Figure]:
    source = locate(uri, CellSettings())
    partitions = cut(source.joinids(), CELLS_PER_PARTITION)
    vocabulary = Vocabulary({f"GENE{number}": number for number in range(N_GENES)})
    _read(source, partitions[:1], vocabulary)  # opens the place and compiles the kernels
    setting: dict[str, str | int | float] = {
        "source": kind,
        "cells": len(n_genes),
        "mean_genes": round(float(n_genes.mean())),
        "cells_per_partition": CELLS_PER_PARTITION,
        "best_of_passes": PASSES,
    }
    figures = []
    for name, tokenizer in (("read", None), ("read and tokens", vocabulary)):
        work = partial(_read, source, partitions, tokenizer)
        # Of the process: the share of a core that other programs take does not count.
        for clock, unit in ((time.process_time, "cells per CPU second"), (time.perf_counter, "cells/s")):
            seconds = min(seconds_of(work, clock) for _ in range(PASSES))
            figures.append(Figure("read", name, len(n_genes) / seconds, unit, setting))
    return figures


def _read(source: Source, partitions: tuple[Partition, ...], vocabulary: Vocabulary | None) -> None:
    genes, rules = np.arange(N_GENES, dtype=np.int32), TokenRules()
    for partition in partitions:
        cells = source.read(partition, genes)
        if vocabulary is not None:
            tokenize(cells, vocabulary, rules)
