"""Time and memory of `scgpt-ray integrate` on many cells with counts.

python tests/measure_integration.py --place FOLDER [--cells 60000] [--from ../shared/data/pbmc3k.h5ad]

Makes (once; about a minute and 1 GB of disk) an atlas: the cells of a file, their counts thinned anew for each copy, of
8 donors that differ in depth and in some genes; and what `embed` would leave of it: 512 numbers a cell, principal
components in random directions, with noise. Then runs the command in a process of its own, and prints the seconds, and
the most memory that it and its workers held together, as JSON. `taskset -c 0,1` before it leaves two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import scanpy as sc
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from scgpt_ray.atlas.plan import cut
from scgpt_ray.identity import Fingerprint
from scgpt_ray.parts.parts import PARTS, write_part
from scgpt_ray.records import Manifest, Plan
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, OBS_ID, matrix_array
from scgpt_ray.storage import Folder

WIDTH, COMPONENTS, DONORS = 512, 40, 8
TYPE, DONOR = "cell_type", "donor_id"
MOST_S = 3600


def grown_cells(base, n, random):
    """Thinned copies of cells, with donors of another depth and 200 genes of their own each."""
    rows = random.permutation(np.arange(n) % base.n_obs)
    donor = random.integers(0, DONORS, n)
    counts = sparse.csr_matrix(base.X[rows], dtype=np.float32)
    of_donor = np.ones((DONORS, base.n_vars))
    for genes in of_donor:
        genes[random.choice(base.n_vars, 200, replace=False)] = 0.5
    of_donor *= random.uniform(0.6, 1.0, (DONORS, 1))
    kept = of_donor[np.repeat(donor, np.diff(counts.indptr)), counts.indices]
    counts.data = random.binomial(counts.data.astype(np.int64), kept).astype(np.float32)
    counts.eliminate_zeros()
    obs = pd.DataFrame({TYPE: base.obs[TYPE].to_numpy(object)[rows], DONOR: [f"d{each}" for each in donor]})
    obs.index = [f"cell-{number}" for number in range(n)]
    return ad.AnnData(counts, obs=obs, var=base.var)


def vectors_of(cells, random):
    """Unit vectors, float32 [n, WIDTH]."""
    logs = ad.AnnData(cells.X.copy())
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    components = TruncatedSVD(COMPONENTS, random_state=0).fit(logs.X[::10]).transform(logs.X).astype(np.float32)
    vectors = components @ np.linalg.qr(random.standard_normal((WIDTH, COMPONENTS)))[0].T.astype(np.float32)
    vectors += random.standard_normal(vectors.shape, np.float32) * vectors.std() * 0.3
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_run(folder, cells, vectors):
    """What a finished embed leaves."""
    n_cells = cells.n_obs
    table = pa.table({
        JOINID: np.arange(n_cells),
        OBS_ID: cells.obs_names.to_list(),
        TYPE: cells.obs[TYPE].to_list(),
        DONOR: cells.obs[DONOR].to_list(),
        N_GENES: np.diff(cells.X.indptr).astype(np.int32),
        EMBEDDING: matrix_array(vectors),
    })  # fmt: skip
    fingerprint = Fingerprint(model={"weights": "synthetic"}, cells={"uri": "cells", "obs_columns": [TYPE, DONOR]})
    partitions, parts, digests = cut(np.arange(n_cells), 8192), {}, []
    for each in partitions:
        rows = table.slice(each.first, each.n_cells)
        part, _ = write_part(folder.folder(PARTS), rows, each, fingerprint=fingerprint.digest, n_tokens=each.n_cells)
        parts[part.name] = part.n_cells
        digests.append(part.data)
    plan = Plan(
        created="2020-01-01", fingerprint=fingerprint, settings={}, coverage={"fraction": 1.0}, partitions=partitions
    )
    plan.write(folder)
    manifest = Manifest(
        fingerprint=fingerprint, n_cells=n_cells, n_quarantined=0, n_empty=0, n_tokens=n_cells, dimension=WIDTH,
        obs_columns=[TYPE, DONOR], parts=parts, digests=digests, coverage=plan.coverage, versions={},
    )  # fmt: skip
    manifest.write(folder)


def memory_of(process):
    """Bytes that a process and those below it hold, pages they share counted once."""
    held = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            held += one.memory_full_info().pss
        except psutil.Error:
            continue
    return held


def measured(command):
    """Run a command; its exit code, seconds, and the most memory of all its processes."""
    started, most = time.perf_counter(), 0
    running = subprocess.Popen(command)
    ended = threading.Event()

    def watch():
        nonlocal most
        while not ended.wait(0.5):
            if psutil.pid_exists(running.pid):
                most = max(most, memory_of(psutil.Process(running.pid)))

    watching = threading.Thread(target=watch)
    watching.start()
    code = running.wait(MOST_S)
    seconds = time.perf_counter() - started
    ended.set()
    watching.join()
    return {"exit": code, "wall_s": round(seconds, 1), "peak_gib": round(most / 2**30, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--from", dest="base", type=Path, default=Path("../shared/data/pbmc3k.h5ad"))
    options = parser.parse_args()
    options.place.mkdir(parents=True, exist_ok=True)
    atlas, run = options.place / f"cells-{options.cells}.h5ad", options.place / f"run-{options.cells}"
    if not (run / Manifest.file).exists():
        base, random = ad.read_h5ad(options.base), np.random.default_rng(0)
        cells = grown_cells(base[base.obs[TYPE] != "unknown"].copy(), options.cells, random)
        cells.write_h5ad(atlas)
        write_run(Folder.at(run), cells, vectors_of(cells, random))
    command = [str(Path(sys.executable).with_name("scgpt-ray")), "integrate", "--embeddings", str(run)]
    command += ["--counts", str(atlas), "--label-column", TYPE, "--batch-column", DONOR]
    figures = measured([*command, "--output", str(options.place / f"out-{os.getpid()}")])
    sys.stdout.write(json.dumps({"cells": options.cells, **figures}) + "\n")


if __name__ == "__main__":
    main()
