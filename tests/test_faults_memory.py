"""Ray short of memory: partitions larger than its object store."""

import logging
import os
import subprocess
import sys

import anndata
import numpy as np
import pytest

from scgpt_ray.cli import DONE, main

pytestmark = [pytest.mark.slow, pytest.mark.ray]

STORE, NOTE = 80 * 2**20, 2**19
"""Bytes of the object store, about the least that Ray allows, and of a text that each cell carries along."""


def driver(*words):
    """A command on a small Ray in this process."""
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=len(os.sched_getaffinity(0)),  # as many threads as the serial run
        object_store_memory=STORE,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    sys.exit(main([*words, "--executor", "ray"]))


def on_ray(words):
    """Exit code of a command in a process."""
    environment = os.environ | {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, __file__, *words], env=environment, stderr=subprocess.PIPE, check=False)
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode


def embed(atlas, checkpoint, output, n):
    return [
        "embed", "--atlas", str(atlas), "--checkpoint", str(checkpoint), "--output", str(output),
        "--cells-per-partition", str(n), "--obs-columns", "note",
    ]  # fmt: skip


def parts(output):
    return {path.name: path.read_bytes() for path in (output / "parts").iterdir()}


@pytest.fixture(scope="module")
def large(blood, tmp_path_factory):
    """Atlas of 200 cells with 100 MB of text."""
    cells, random = blood[:200].copy(), np.random.default_rng(3)
    cells.obs["note"] = [random.bytes(NOTE // 2).hex() for _ in range(200)]
    path = tmp_path_factory.mktemp("large") / "large.h5ad"
    anndata.AnnData(cells.X, obs=cells.obs, var=cells.var).write_h5ad(path)
    return path


@pytest.mark.parametrize("n", [40, 200])
def test_partitions_that_do_not_fit_into_the_object_store(large, checkpoint, tmp_path, n):
    """Together, or alone."""
    words = [embed(large, checkpoint, tmp_path / name, n) for name in ("out", "whole")]
    assert on_ray(words[0]) == DONE
    assert main([*words[1], "--executor", "serial"]) == DONE
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")


if __name__ == "__main__":
    driver(*sys.argv[1:])
