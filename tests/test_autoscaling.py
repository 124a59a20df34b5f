"""GPUs from zero: Ray's autoscaler with its fake provider and fake GPUs, in a separate network."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

BIN = Path(sys.executable).parent

CONFIG = {
    "cluster_name": "fake",
    "max_workers": 2,
    # By its module: Ray's wheel lacks the file of defaults for the type fake_multinode.
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": "127.0.0.1:6379",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "auth": {},
    "file_mounts": {},
    **{key: [] for key in ("cluster_synced_files", "initialization_commands")},
    **{key: [] for key in (f"{prefix}setup_commands" for prefix in ("", "head_", "worker_"))},
    **{key: [] for key in (f"{prefix}_start_ray_commands" for prefix in ("head", "worker"))},
}

HEAD = """
set -e
ip link set lo up
ray start --head --autoscaling-config="$FOLDER/cluster.json" --num-cpus=2 --num-gpus=0 --include-dashboard=false \
    --node-ip-address=127.0.0.1 --object-store-memory=80000000 --disable-usage-stats > "$FOLDER/head.log"
exec python "$FOLDER/driver.py"
"""

DRIVER = """
import json, logging, sys, time
import pyarrow as pa, ray
from scgpt_ray.atlas.plan import cut
from scgpt_ray.config import EmbedSettings
from scgpt_ray.execution.cluster import connected
from scgpt_ray.execution.ray_executor import RayExecutor
from scgpt_ray.pipelines.executor import Stages
import numpy as np

def read(partition):
    return pa.table({"x": [partition.number]})

class Compute:
    def __call__(self, table):
        time.sleep(1)
        context = ray.get_runtime_context()
        return table, {"node": context.get_node_id(), "gpus": len(ray.get_gpu_ids())}

def commit(table, partition, figures):
    return {"partition": partition.number, **figures}

logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
settings = EmbedSettings(atlas="a", checkpoint="c", output="o", device="gpu", gpus=2, wait_for_gpus="3m")
with connected():
    executor = RayExecutor()
    before = executor.gpus
    pool = executor.pool(settings)
    at_start = executor.gpus
    receipts = list(executor.stream(cut(np.arange(24), 2), Stages(read, Compute, (), commit), pool))
    figures = {"before": before, "at_start": at_start, "size": pool.size, "cells": pool.cells_per_partition}
    print(json.dumps({**figures, "receipts": receipts}))
"""


UNSHARE = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


def may_unshare():
    """Whether this user may make namespaces."""
    return (
        shutil.which("unshare") and not subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)  # nodes start slowly on a busy machine
@pytest.mark.skipif(not may_unshare(), reason="needs network and process namespaces (unshare)")
def test_gpus_from_zero(tmp_path):
    """The autoscaler is asked, the first GPU waited for, and the size of a partition is that of GPUs."""
    folder = Path("/tmp") / f"scgpt-{uuid.uuid4().hex[:8]}"  # short: the sockets of Ray lie below it
    folder.mkdir()
    (folder / "cluster.json").write_text(json.dumps(CONFIG))
    (folder / "driver.py").write_text(DRIVER)
    environment = {
        **os.environ,
        "FOLDER": str(folder),
        "RAY_TMPDIR": str(folder),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "PYTHONWARNINGS": "ignore",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    del environment["RAY_ADDRESS"]  # found as `ray start` leaves it
    command = [*UNSHARE, "bash", "-c", HEAD]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["before"], found["at_start"] >= 1, found["size"], found["cells"]) == (0, True, 2, 8192)
    assert "waiting for GPUs: 0 of 1 are there" in done.stderr
    assert sorted(receipt["partition"] for receipt in found["receipts"]) == [*range(12)]
    assert {receipt["gpus"] for receipt in found["receipts"]} == {1}
