"""Each job program, submitted for real to a local head."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def head(tmp_path_factory, unused_ports):
    """A Ray head of its own on loopback, with the job server; its address."""
    dashboard, gcs, client, agent = unused_ports
    # A short path: the sockets of Ray lie below it.
    folder = Path("/tmp") / f"scgpt-jobs-{os.getpid()}"
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(folder),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}"]  # the default is taken by any other Ray of this machine
    # More than this machine has: none of the jobs that run at a time waits for another.
    command += ["--num-cpus=4", "--disable-usage-stats", f"--temp-dir={folder}"]
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    process = subprocess.Popen([str(word) for word in command], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(f"{address}/api/version", process)
        _wait_for(f"http://127.0.0.1:{agent}/api/local_raylet_healthz", process)
        yield address, environment
    finally:
        process.terminate()
        process.wait(60)
        log.close()
        _remove(folder)


def _remove(folder, limit_s=20):
    """The head's processes end a little after it, and write until then."""
    deadline = time.monotonic() + limit_s
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.2)


def _wait_for(url, process, limit_s=90):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"no answer at {url} within {limit_s} s")


@pytest.fixture(scope="module")
def unused_ports():
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def run_job(head, *words):
    """Submit a program as the README says, and wait for it."""
    address, environment = head
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(ROOT / "jobs"), "--"]
    return subprocess.run(
        [*command, sys.executable, *words], env=environment, capture_output=True, text=True, timeout=500
    )


def submit(head, program, *options):
    """Run a program with its YAML, and return its result line."""
    done = run_job(head, f"{program}.py", "--config", f"configs/{program}.yaml", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"verb"')))


def test_every_verb_as_a_job(head, blood_file, checkpoint, tmp_path):
    cells = ["--checkpoint", str(checkpoint), "--precision", "float32"]
    with ThreadPoolExecutor() as beside:
        refused = beside.submit(run_job, head, "embed.py", "--atlas", "/nowhere")
        network = beside.submit(
            submit, head, "pretrain", *cells, "--atlas", str(blood_file), "--output", str(tmp_path / "network"),
            "--obs-filter", "donor == 'd1'", "--steps", "2", "--warmup-steps", "1", "--cells-per-step", "16",
            "--workers", "1",
        )  # fmt: skip
        reference = submit(
            head, "embed", *cells, "--atlas", str(blood_file), "--output", str(tmp_path / "reference"),
            "--obs-filter", "cell_type in ['B', 'T']", "--obs-columns", "cell_type", "donor",
        )  # fmt: skip
        assert reference["n_cells"] == 174
        integrated = beside.submit(
            submit, head, "integrate", "--embeddings", str(tmp_path / "reference"), "--batch-column", "donor",
            "--factor-columns", "n_genes", "--output", str(tmp_path / "integrated"),
        )  # fmt: skip
        index = submit(
            head, "build_index", "--embeddings", str(tmp_path / "reference"), "--output", str(tmp_path / "index"),
            "--label-columns", "cell_type",
        )  # fmt: skip
        assert index["recall_at_10"] == 1
        mapped = submit(
            head, "map_query", "--query", str(blood_file), "--index", str(tmp_path / "index"), "--checkpoint",
            str(checkpoint), "--output", str(tmp_path / "mapped"), "--truth-column", "cell_type",
        )  # fmt: skip
    assert mapped["n_cells"] == 260
    assert (tmp_path / "mapped" / "predictions.parquet").is_file()
    assert integrated.result()["scores"]["reference"]["avg_bio"] > 0
    assert (tmp_path / "integrated" / "report.html").is_file()
    assert network.result()["steps"] == 2
    assert (tmp_path / "network" / "checkpoint" / "best_model.pt").is_file()
    assert refused.result().returncode != 0
    assert "--checkpoint is missing" in refused.result().stdout + refused.result().stderr
