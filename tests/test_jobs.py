"""A verb as a job, submitted for real to a local head."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
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
        "PATH": f"{BIN}:{os.environ['PATH']}",
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


def test_a_verb_as_a_job(head, blood_file, checkpoint, tmp_path):
    """As the README says: the program of the package, with options of a file of jobs/."""
    address, environment = head
    command = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ROOT / "jobs", "--", "scgpt-ray"]
    command += ["embed", "--config", "configs/embed.yaml", "--atlas", blood_file, "--checkpoint", checkpoint]
    command += ["--output", tmp_path / "reference", "--precision", "float32", "--obs-columns", "cell_type", "donor"]
    command += ["--obs-filter", "cell_type in ['B', 'T']"]
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    result = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"verb"')))
    assert (result["verb"], result["output"], result["n_cells"]) == ("embed", str(tmp_path / "reference"), 174)
    assert (tmp_path / "reference" / "manifest.json").is_file()
