"""Each job program, submitted for real to a local head."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

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
    command += ["--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}"]
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


def submit(head, program, *options):
    """Submit a job as the README says, wait for it, and return its result line."""
    address, environment = head
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(ROOT / "jobs"), "--"]
    command += [sys.executable, f"{program}.py", "--config", f"configs/{program}.yaml", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"verb"')))


def test_embed_index_and_map_as_jobs(head, blood_file, checkpoint, tmp_path):
    cells = ["--checkpoint", str(checkpoint), "--precision", "float32"]
    reference = submit(
        head, "embed", *cells, "--atlas", str(blood_file), "--output", str(tmp_path / "reference"),
        "--obs-filter", "donor == 'd1'", "--obs-columns", "cell_type",
    )  # fmt: skip
    assert reference["n_cells"] == 173
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


def test_a_refused_job_fails(head, tmp_path):
    address, environment = head
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(ROOT / "jobs"), "--"]
    command += [sys.executable, "embed.py", "--atlas", "/nowhere"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "--checkpoint is missing" in done.stdout + done.stderr
