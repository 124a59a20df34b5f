"""Clusters on this machine whose nodes die, drain and join while cells are embedded."""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from scgpt_ray.atlas.h5ad import H5adSource
from scgpt_ray.atlas.plan import cut
from scgpt_ray.config import EmbedSettings
from scgpt_ray.execution.engine import LocalOrRay
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.pipelines.embed import embed, run
from scgpt_ray.pipelines.embed_request import check
from scgpt_ray.pipelines.executor import Stages
from scgpt_ray.records import Manifest
from scgpt_ray.storage import Folder
from scgpt_ray.tracking import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@dataclass(frozen=True)
class Watched(H5adSource):
    """Notes the node of each read, and reads slowly until a file is there."""

    log: str = ""
    gate: str = ""

    def read(self, partition, gene_tokens):
        import ray

        with Path(self.log).open("a") as log:
            log.write(f"{ray.get_runtime_context().get_node_id()}\n")
        until = time.monotonic() + 2
        while time.monotonic() < until and not Path(self.gate).exists():
            time.sleep(0.1)
        return super().read(partition, gene_tokens)


def request(atlas, checkpoint, output):
    return EmbedSettings.of(
        {"atlas": str(atlas), "checkpoint": str(checkpoint), "output": str(output), "cells_per_partition": 4}
    )


def watched(atlas, checkpoint, output, log, gate):
    """A run on the cluster of RAY_ADDRESS, which this process must not be connected to already."""
    job = check(request(atlas, checkpoint, output))
    job = replace(job, source=Watched(**vars(job.source), log=log, gate=gate))
    with LocalOrRay("ray").open(job.n_cells) as executor, Tracker("embed", job.output, {}) as tracker:
        run(job, executor, tracker)


def read_nothing(partition):
    return pa.table({"x": [partition.number]})


class Twin:
    """Takes the GPU of an actor, and computes nothing: notes the node, and is slow until a file is there."""

    def __init__(self, log, gate):
        self.log, self.gate = Path(log), Path(gate)

    def __call__(self, table):
        import ray

        with self.log.open("a") as log:
            log.write(f"{ray.get_runtime_context().get_node_id()}\n")
        until = time.monotonic() + 1
        while time.monotonic() < until and not self.gate.exists():
            time.sleep(0.05)
        return table, {"gpus": len(ray.get_gpu_ids())}


def receipt(table, partition, figures):
    return {"number": partition.number, **figures}


def stream_to_twins(log, gate, receipts):
    """Send partitions through a pool of up to two GPUs, on the cluster of RAY_ADDRESS."""
    settings = EmbedSettings(atlas="a", checkpoint="c", output="o", device="gpu", gpus=2)
    stages = Stages(read_nothing, Twin, (log, gate), receipt)
    with LocalOrRay("ray").open(0) as executor:
        done = [*executor.stream(cut(np.arange(150), 1), stages, executor.pool(settings))]
    Path(receipts).write_text(json.dumps(done))


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster()
    add(made, num_cpus=0, include_dashboard=False)
    yield made
    made.shutdown()


def add(cluster, starts=6, **options):
    """Add a node; Ray gives one 30 s to start, which are not enough on a busy machine."""
    try:
        return cluster.add_node(**options)
    except Exception:  # a bare one
        if starts == 1:
            raise
        return add(cluster, starts - 1, **options)


def drain(cluster, node):
    """Say that a node will end in ten minutes, as the provider of a spot machine does."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    preempted = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + 600) * 1000)
    accepted, why = GcsClient(address=cluster.address).drain_node(node.node_id, preempted, "spot", deadline)
    assert accepted, why


def has_network(node):
    """Whether an actor with the network is on a node."""
    [raylet] = node.all_processes["raylet"]
    names = [" ".join(process.cmdline()) for process in psutil.Process(raylet.process.pid).children()]
    return any("MapWorker" in name for name in names)


@contextlib.contextmanager
def driver(cluster, *arguments):
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    command = [sys.executable, __file__, *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition, process, limit_s=120):
    until = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.timeout(600)  # nodes start slowly on a busy machine
def test_a_node_that_dies_one_that_drains_and_one_that_joins(cluster, blood_file, checkpoint, tmp_path, monkeypatch):
    """The actor leaves the draining node, which stays; the threads of a worker are those that the run began with."""
    output, log, gate = tmp_path / "out", tmp_path / "log", tmp_path / "gate"
    nodes = [add(cluster, num_cpus=1) for _ in range(2)]
    with driver(cluster, "watched", blood_file, checkpoint, output, log, gate) as process:
        wait_for(lambda: log.exists() and {node.node_id for node in nodes} <= {*log.read_text().split()}, process)
        wait_for(lambda: list(output.glob("parts/part-*")), process)
        [drained], [doomed] = ([node for node in nodes if has_network(node) == there] for there in (True, False))
        cluster.remove_node(doomed, allow_graceful=False)
        joined = add(cluster, num_cpus=2)
        drain(cluster, drained)
        wait_for(lambda: joined.node_id in log.read_text(), process)
        assert not (output / Manifest.file).exists()
        gate.touch()
        assert process.wait(200) == 0, process.stderr.read()
    monkeypatch.setattr(SerialExecutor, "nodes", [1])
    embed(request(blood_file, checkpoint, tmp_path / "whole"), LocalOrRay("serial"))
    assert content(output) == content(tmp_path / "whole")
    assert Manifest.read(Folder.at(output)).n_quarantined == 0


@pytest.mark.timeout(600)  # nodes start slowly on a busy machine
def test_a_pool_grows_by_a_node_with_a_gpu_and_outlives_the_loss_of_one(cluster, tmp_path):
    """The GPUs are numbers that Ray counts: what is shown is where actors run, not what they compute."""
    log, gate, receipts = tmp_path / "log", tmp_path / "gate", tmp_path / "receipts"
    first = add(cluster, num_cpus=3, num_gpus=1)
    with driver(cluster, "stream_to_twins", log, gate, receipts) as process:
        wait_for(lambda: log.exists() and first.node_id in log.read_text(), process)
        joined = add(cluster, num_cpus=3, num_gpus=1)
        wait_for(lambda: joined.node_id in log.read_text(), process)
        cluster.remove_node(first, allow_graceful=False)
        gate.touch()
        assert process.wait(200) == 0, process.stderr.read()
    found = json.loads(receipts.read_text())
    assert sorted(one["number"] for one in found) == [*range(150)]
    assert {one["gpus"] for one in found} == {1}


def content(output):
    return {path.name: path.read_bytes() for path in (output / "parts").iterdir()}


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
