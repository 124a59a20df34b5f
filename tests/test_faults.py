"""Faults of the world, each for real: disks, folders and stores in trouble; the same command then finishes the work."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scgpt_ray.cli import BAD_INPUT, DONE, FAILED, main
from scgpt_ray.ending import RESULT
from scgpt_ray.lease import Lease
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.storage import Folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _one_store(tmp_path_factory):
    """MLflow's store is on no disk in trouble."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")
        yield


@pytest.fixture(scope="module")
def embed(blood_file, checkpoint):
    """The words of a command, without the output."""
    return [
        "embed", "--atlas", str(blood_file), "--checkpoint", str(checkpoint), "--executor", "serial",
        "--max-length", "16", "--cells-per-partition", "20", "--output",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(embed, _one_store, tmp_path_factory):
    """The output of a run that nothing happens to."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert main([*embed, str(output)]) == DONE
    return output


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk: disk(options) -> folder; again with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        more = ["-o", f"remount,{options}"] if place.is_mount() else ["-o", options]
        while subprocess.run(["mount", "-t", "tmpfs", *more, "tmpfs", str(place)], check=False).returncode:
            time.sleep(0.001)  # a file is being written
        return place

    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("needs to mount a tmpfs, which root may do")
    yield mount
    subprocess.run(["umount", str(place)], check=False)


def parts(output):
    return {path.name: path.read_bytes() for path in (output / "parts").iterdir()}


def last_line(capfd):
    """The last line on stderr, without tracebacks above it."""
    err = capfd.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_a_full_disk(embed, whole, disk, capfd):
    """Nothing is cut off: the files that are there are whole, and there are no others."""
    output = disk("size=48k") / "out"
    assert main([*embed, str(output)]) == FAILED
    assert "No space left on device" in last_line(capfd)
    there = {path.name: path.read_bytes() for path in output.glob("parts/*")}
    assert there.items() <= parts(whole).items()
    assert not list(output.rglob("*.tmp"))
    assert not (output / Lease.file).exists()
    disk("size=50m")
    assert main([*embed, str(output)]) == DONE
    assert parts(output) == parts(whole)


def test_a_disk_that_becomes_read_only(embed, whole, disk, capfd):
    """The lease that could not be given back is that of a dead process for the next run."""
    output = disk("size=50m") / "out"
    disk("ro")
    assert main([*embed, str(output)]) == BAD_INPUT
    assert "cannot be written (Read-only file system)" in last_line(capfd)
    disk("rw")
    with when_parts(output, lambda: disk("ro")):
        command = [sys.executable, "-m", "scgpt_ray", *embed, str(output)]
        assert subprocess.run(command, check=False).returncode == FAILED
    assert "Read-only file system" in last_line(capfd)
    disk("rw")
    assert main([*embed, str(output)]) == DONE
    assert parts(output) == parts(whole)


@contextlib.contextmanager
def when_parts(output, act):
    """Do something when the first part is there."""
    done = []

    def work():
        while not list(output.glob("parts/part-*")):
            time.sleep(0.001)
        done.append(act())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(30)
    assert done


def test_an_output_that_is_deleted(embed, whole, tmp_path, capfd):
    output = tmp_path / "out"
    with when_parts(output, lambda: shutil.rmtree(output / "parts")):
        assert main([*embed, str(output)]) == FAILED
    assert "part-00000.parquet" in last_line(capfd)
    assert not (output / "manifest.json").exists()
    assert main([*embed, str(output)]) == DONE
    assert parts(output) == parts(whole)


def test_an_output_folder_that_is_deleted(embed, whole, tmp_path, capfd):
    output = tmp_path / "out"
    with when_parts(output, lambda: shutil.rmtree(output, ignore_errors=True)):
        assert main([*embed, str(output)]) == FAILED
    last_line(capfd)
    assert not (output / "manifest.json").exists()
    assert main([*embed, str(output)]) == DONE
    assert parts(output) == parts(whole)


def same(one, other):
    columns = ["obs_id", "embedding"]
    return read_embeddings(Folder.at(one)).select(columns).equals(read_embeddings(Folder.at(other)).select(columns))


def test_a_store_that_stalls(embed, whole, s3, outage, caplog):
    """For longer than the client's own patience."""
    outage("1 parts")
    assert main([*embed, f"{s3}/out"]) == DONE
    assert "waiting" in caplog.text
    assert same(f"{s3}/out", whole)


@pytest.mark.parametrize("jump_s", [-86400, 86400])
def test_a_clock_that_jumps(embed, tmp_path, jump_s, capfd):
    """On one machine a lease is as good as its process, whatever the clock says."""
    output = tmp_path / "out"
    output.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
        held = Lease.of_this_process("embed")
        assert held.process == Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        when = time.time() + jump_s
        held.replace(pid=other.pid, process=started, began=when, heartbeat=when).write(Folder.at(output))
        assert main([*embed, str(output)]) == BAD_INPUT
        assert f"is in use by embed on {held.host} (pid {other.pid})" in last_line(capfd)
        other.kill()
    assert main([*embed, str(output)]) == DONE
    assert '"status": "done"' in (output / RESULT).read_text()
