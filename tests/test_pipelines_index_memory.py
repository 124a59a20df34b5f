"""The process that builds an index, searches it and maps onto it never holds the embeddings."""

import json
import os
import subprocess
import sys

import pytest

TINY, SMALL, LARGE, WIDTH = 2_000, 20_000, 200_000, 256
BYTES = 4 * WIDTH * LARGE
"""Of the embeddings; labels, which are read shard by shard, took 22 MB more of Arrow's memory for the large one."""
FACTORIES = ("Flat", "PCAR16,IVF64,PQ8x4fsr")

GIVEN_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Freed memory is given back at once. By default allocators keep up to 100 MB of it, sometimes, and use it again."""

DRIVER = """
import gc, json, sys, threading
from pathlib import Path

import numpy as np

from scgpt_ray.cli import NEW_OBJECTS
from scgpt_ray.config import IndexSettings, MapSettings
from scgpt_ray.execution.engine import LocalOrRay
from scgpt_ray.pipelines import query_votes
from scgpt_ray.pipelines.index import build_index
from scgpt_ray.pipelines.map import prediction_rules, reference_cells
from scgpt_ray.pipelines.overview import Overview
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.records import Manifest, NeighborDistances
from scgpt_ray.storage import Folder
from scgpt_ray.parts.export import read_embeddings

place, factories, width = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])


def held():
    '''Bytes of memory of this process, with what it maps of Ray's object store; files that it maps are not in it.'''
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return sum(1024 * int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem"))


def growth(work):
    '''Most bytes held during a piece of work, beyond those before.'''
    gc.collect()
    peak = before = held()
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = work()
    done.set()
    watcher.join()
    return max(peak, held()) - before


def build(size, factory, output):
    settings = {"embeddings": f"{place}/{size}", "output": output, "factory": factory, "shards": 2}
    build_index(IndexSettings(**settings, target_recall=0.1), engine)


def search(output):
    reference = Reference.at(output).on(executor)
    queries = np.random.default_rng(0).standard_normal((512, width)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    ids, _ = reference.neighbors(queries, 10)
    reference.labels(ids, ["kind"])
    reference.cell_counts("kind")
    reference.sample(1000, 0, ["kind"])
    reference.exact(queries[:64], 10)


def map_onto(output, size):
    options = {"query": "-", "index": output, "checkpoint": "-", "output": "-", "label_columns": ["kind"]}
    settings, reference = MapSettings(**options), Reference.at(output).on(executor)
    rules = prediction_rules(settings, reference.index)
    votes = query_votes.QueryVotes(settings, reference, rules, reference_cells(settings, reference, rules), {})
    folder = Folder.at(f"{place}/{size}")
    parts = QueryParts(folder, Manifest.read(folder), Folder.at(f"{place}/predicted-{size}"), votes.request())
    votes.commit(parts, executor)
    Overview.of(parts, rules.columns, {}, NeighborDistances("donor", (0.1,), (0.2,)), 1)


gc.set_threshold(NEW_OBJECTS)
found = {}
engine = LocalOrRay("ray")
with engine.open(0) as executor:
    for number, factory in enumerate(factories):
        # The first tells what it takes at all: libraries and threads.
        for turn, size in enumerate(("small", "small", "large")):
            output = f"{place}/index-{number}-{turn}"
            grown = {"build": growth(lambda: build(size, factory, output)), "search": growth(lambda: search(output))}
            found[f"{factory} {turn}"] = grown
    build("tiny", "Flat", f"{place}/reference")
    for turn, size in enumerate(("small", "small", "large")):
        found[f"map {turn}"] = growth(lambda: map_onto(f"{place}/reference", size))
found["whole"] = growth(lambda: read_embeddings(Folder.at(f"{place}/large")))
print(json.dumps(found))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")
def test_the_driver_does_not_grow_with_the_embeddings(local_ray, make_embeddings, tmp_path):
    import ray

    for name, n_cells in (("tiny", TINY), ("small", SMALL), ("large", LARGE)):
        make_embeddings(tmp_path / name, n_cells=n_cells, cells_per_part=2048, dimension=WIDTH)
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), json.dumps(FACTORIES), str(WIDTH)],
        env={**os.environ, **GIVEN_BACK, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert driver.returncode == 0, driver.stderr
    found = json.loads(driver.stdout.splitlines()[-1])
    assert found.pop("whole") > BYTES, "who reads all embeddings is found out"
    # Of each query cell it holds the label, and what the report counts.
    assert found.pop("map 2") - found.pop("map 1") < 100 * LARGE, found
    for factory in FACTORIES:
        small, large = (found[f"{factory} {turn}"] for turn in (1, 2))
        for work, n_bytes in large.items():
            assert n_bytes - small[work] < BYTES / 5, f"{work} of {factory}: {found} of {BYTES:,} bytes"
