"""Recipes as jobs, submitted for real to a local head with token authentication."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

import scgpt_ray
from scgpt_ray.cli import BAD_INPUT, DONE

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
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(folder),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
        "PYTHONWARNINGS": "ignore",
    }
    del environment["RAY_ADDRESS"]
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
        except urllib.error.HTTPError:  # without the token
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


@pytest.fixture
def submit(head):
    """Submits a recipe in a separate process: submit(path, *options, **environment) -> process and its JSON line."""
    address, environment = head

    def submit(recipe, *options, **changes):
        command = [sys.executable, "-m", "scgpt_ray", "submit", str(recipe), "--address", address, *options]
        environ = {name: value for name, value in {**environment, **changes}.items() if value is not None}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=300)
        return done, json.loads(done.stdout.splitlines()[-1]) if done.stdout else None

    return submit


def write(path, **options):
    path.write_text(yaml.safe_dump({name: str(value) for name, value in options.items()}))
    return path


def test_a_recipe(submit, blood_file, checkpoint, tmp_path):
    """Submitted, refused while it runs, seen from another terminal, and found to be done by its second attempt."""
    output = tmp_path / "reference"
    recipe = write(
        tmp_path / "r.yaml", verb="embed", atlas=blood_file, checkpoint=checkpoint, output=output, precision="float32",
        obs_filter="cell_type in ['B', 'T']",
    )  # fmt: skip
    done, first = submit(recipe, "--detach")
    assert done.returncode == DONE, done.stderr
    assert first["state"] in ("PENDING", "RUNNING")
    done, _ = submit(recipe)
    assert done.returncode == BAD_INPUT, done.stderr
    assert f"job {first['job']} of the same recipe is " in done.stderr
    deadline = time.monotonic() + 240
    while not (output / "result.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert scgpt_ray.status(folder=str(output)).state == "finished"
    while (done := submit(recipe)[0]).returncode == BAD_INPUT:  # Ray sees the end of a job a little later
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)
    values = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, values["state"], values["job"]) == (DONE, "SUCCEEDED", f"{first['job']}-try2")
    assert "nothing to do" in done.stderr, "the log of the job"
    assert (values["result"]["verb"], values["result"]["n_cells"]) == ("embed", 174)


def test_the_exit_code_of_the_verb_is_kept(submit, blood_file, tmp_path):
    """Ray's own command line ends with 1."""
    absent = tmp_path / "no-checkpoint"
    recipe = write(tmp_path / "r.yaml", verb="embed", atlas=blood_file, checkpoint=absent, output=tmp_path / "out")
    done, values = submit(recipe)
    assert (done.returncode, values["exit_code"], values["state"]) == (BAD_INPUT, BAD_INPUT, "FAILED"), done.stderr
    assert f"scgpt-ray: {absent}" in done.stderr, "the log of the job"
    assert values["result"] is None


@pytest.mark.parametrize(
    "changes", [{"RAY_AUTH_TOKEN": None}, {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}]
)
def test_a_client_without_the_token_is_refused(submit, changes, tmp_path):
    recipe = write(tmp_path / "r.yaml", verb="checkpoints")
    done, values = submit(recipe, **changes)
    assert (done.returncode, values) == (BAD_INPUT, None), done.stderr
    assert len(done.stderr.splitlines()) <= 3, "no traceback"
    assert "RAY_AUTH_TOKEN" in done.stderr
