"""Seconds, memory and requests of what a driver does for 100 million cells besides computing.

    python -m scgpt_ray.benchmark.bookkeeping

Parts hold eight simulated cells, and shards one: footers, listings and markers do not depend on it. Requests are those
of a mock S3 server (moto) on loopback, for fewer parts.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import cut
from scgpt_ray.benchmark.latency import served
from scgpt_ray.benchmark.measurement import Figure, Figures, Setting, peak_bytes, private_bytes
from scgpt_ray.benchmark.simulated_run import write_run
from scgpt_ray.index.label_columns import read_labels
from scgpt_ray.index.shard import commit_shard, require_files
from scgpt_ray.object_store import ObjectStore, using
from scgpt_ray.parts.manifest import committed_parts, prove_complete
from scgpt_ray.records import Plan, ShardDescription
from scgpt_ray.storage import Folder

_PLANNED, _CELLS_PER_PART = 8192, 8
_LABELS = 1000  # distinct values


class _Measured(Figures):
    """Figures of pieces of work."""

    @contextmanager
    def work(self, name: str, **setting: int) -> Iterator[None]:
        """Measure the seconds and the growth of private memory of a block."""
        before, started = private_bytes(), time.perf_counter()
        yield
        seconds, grown = time.perf_counter() - started, private_bytes() - before
        asked: Setting = dict(setting)
        self += [
            Figure("bookkeeping", name, seconds, "s", asked),
            Figure("bookkeeping", f"{name}: memory that it leaves", grown / 1e6, "MB", asked),
        ]


def measure(options: argparse.Namespace) -> Figures:
    """Measure everything."""
    figures = _Measured()
    with tempfile.TemporaryDirectory(prefix="scgpt-ray-benchmark-") as scratch:
        place = Path(scratch)
        with figures.work("joinids cut into partitions", cells=options.cells):
            cut(np.arange(options.cells), _PLANNED)
        figures.append(Figure("bookkeeping", "peak memory", peak_bytes() / 1e6, "MB", {"cells": options.cells}))
        _plan(figures, Folder.at(place / "planned"), options.parts)
        _parts(figures, place, options)
        _shards(figures, place, options.shards)
        _labels(figures, place, options.cells // options.shards)
    return figures


def _plan(figures: _Measured, folder: Folder, n_parts: int) -> None:
    write_run(folder, _CELLS_PER_PART * n_parts, width=2, cells_per_part=_CELLS_PER_PART, seed=0)
    with figures.work("plan read", partitions=n_parts):
        plan = Plan.read(folder)
    assert plan is not None, "it was written"
    with figures.work("parts listed and proved on a disk", parts=n_parts):
        prove_complete(plan, committed_parts(folder, plan.fingerprint))


def _parts(figures: _Measured, place: Path, options: argparse.Namespace) -> None:
    """Requests for parts, of which fewer are served."""
    run = Folder.at(place / "run")
    write_run(run, _CELLS_PER_PART * options.served, width=2, cells_per_part=_CELLS_PER_PART, seed=0)
    plan = Plan.read(run)
    assert plan is not None, "it was written"
    with served(run.path) as (proxy, uri), using(ObjectStore.of({"endpoint": proxy.url})):
        before = proxy.requests
        prove_complete(plan, committed_parts(Folder.at(uri), plan.fingerprint))
        requests = proxy.requests - before
    setting: Setting = {"parts": options.served}
    figures.append(Figure("bookkeeping", "parts listed and proved on S3, per part", requests / options.served,
                          "requests", setting))  # fmt: skip


def _shards(figures: _Measured, place: Path, n_shards: int) -> None:
    folder = Folder.at(place / "index")
    shards = [ShardDescription.of(number, 1, is_exact=False) for number in range(n_shards)]
    for shard in shards:
        for name in shard.files:
            folder.write(name, b"1")
        commit_shard(folder, shard, "request")
    with figures.work("files of shards required on a disk", shards=n_shards):
        require_files(folder, shards)
    with served(folder.path) as (proxy, uri), using(ObjectStore.of({"endpoint": proxy.url})):
        before = proxy.requests
        require_files(Folder.at(uri), shards)
        requests = proxy.requests - before
    figures.append(Figure("bookkeeping", "files of shards required on S3", requests, "requests", {"shards": n_shards}))


def _labels(figures: _Measured, place: Path, n_cells: int) -> None:
    folder, shard = Folder.at(place), ShardDescription.of(0, n_cells, is_exact=False)
    codes = np.random.default_rng(0).integers(0, _LABELS, n_cells, dtype=np.int32)
    names = pa.array([f"label {number}" for number in range(_LABELS)])
    table = pa.table({"label": pa.DictionaryArray.from_arrays(codes, names)})
    pq.write_table(table, folder.path / shard.labels, compression="zstd")
    del table, codes
    with figures.work("a label column of a shard read", cells=n_cells, labels=_LABELS):
        held = read_labels(folder, shard, "label")
    figures.append(Figure("bookkeeping", "memory of a label of a cell", held.nbytes / n_cells, "B", {"cells": n_cells}))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000_000, help="cells of the atlas")
    parser.add_argument("--parts", type=int, default=12_000, help="partitions and parts")
    parser.add_argument("--served", type=int, default=200, help="parts on the mock S3 server")
    parser.add_argument("--shards", type=int, default=50, help="shards of the index")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    os.environ.update(AWS_ACCESS_KEY_ID="id", AWS_SECRET_ACCESS_KEY="key", AWS_REGION="us-east-1")
    sys.stdout.write(f"{measure(parse(sys.argv[1:])).text()}\n")
