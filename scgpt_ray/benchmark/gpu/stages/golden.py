"""Golden embeddings, recorded from upstream scGPT: checkpoint and cells to the numbers of a file, by h5py alone."""

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.subjects import embed
from scgpt_ray.network.checkpoint import Checkpoint, read_checkpoint
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.schema import COUNT, GENE, JOINID, ragged_array
from scgpt_ray.tokenizer.rules import TokenRules, tokenize

CELLS = "cells_distinct.h5ad"
EXPECTED = "cells_distinct.X_scGPT.npy"
LARGEST_DIFFERENCE = 1e-5
"""Of a coordinate, in float32."""

LARGEST_SHARE = {"float32": 1e-3, "float16": 0.04, "bfloat16": 0.35}
"""Root mean square error over the cells' own spread: twice what 16-bit arithmetic, emulated on a CPU, shows at most."""


def run(bench: Bench) -> None:
    """Check every folder."""
    if bench.golden is None:
        bench.report.figure("left out", "no --golden")
        return
    folders = sorted(path.parent for path in bench.golden.glob(f"*/{CELLS}"))
    if not folders:
        bench.report.failure("golden", f"{bench.golden} has no folder with {CELLS}")
    for folder in folders:
        with bench.report.attempt(folder.name):
            _check(bench, folder)


def _check(bench: Bench, folder: Path) -> None:
    """float32 by its largest difference, every precision by its error against the spread."""
    checkpoint = read_checkpoint(folder / "checkpoint")
    tokens = tokenize(read_cells(folder / CELLS, checkpoint), checkpoint.vocabulary, TokenRules())
    expected = np.load(folder / EXPECTED, allow_pickle=False)
    spread = _root_mean_square(expected - expected.mean(axis=0))
    for precision in dict.fromkeys(("float32", *bench.sizes.precisions)):
        name = f"{folder.name}, {precision}"
        with bench.report.attempt(name):
            embedder = Embedder(checkpoint, device=str(bench.device), precision=precision)
            difference = embed(embedder, tokens) - expected
            way = str(embedder.describe()["attention"])
            if precision == "float32":
                largest = float(np.abs(difference).max())
                bench.report.check(f"{name}, largest difference", largest, LARGEST_DIFFERENCE, attention=way)
            share = _root_mean_square(difference) / spread
            bench.report.check(f"{name}, error over spread", share, LARGEST_SHARE[precision], attention=way)


def read_cells(path: Path, checkpoint: Checkpoint) -> pa.Table:
    """CELLS of an .h5ad file with a CSR matrix and names in var/feature_name; genes without a token are left out."""
    with h5py.File(path) as file:
        indptr, gene, count = (file["X"][name][:] for name in ("indptr", "indices", "data"))
        names = _texts(file["var"]["feature_name"])
    token = np.array([checkpoint.vocabulary.tokens.get(name, -1) for name in names])[gene]
    known = token >= 0
    offsets = np.append(0, np.cumsum(known))[indptr]
    return pa.table(
        {
            JOINID: np.arange(len(indptr) - 1),
            GENE: ragged_array(offsets, token[known].astype(np.int32)),
            COUNT: ragged_array(offsets, count[known].astype(np.float32)),
        }
    )


def _texts(column: h5py.Dataset | h5py.Group) -> npt.NDArray[np.object_]:
    """A column, plain or categorical."""
    if isinstance(column, h5py.Group):
        return np.asarray(column["categories"].asstr()[:][column["codes"][:]])
    return np.asarray(column.asstr()[:])


def _root_mean_square(values: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt((values.astype(np.float64) ** 2).mean()))
