"""Ray short of memory: partitions larger than its object store, and workers that its monitor kills."""

import ctypes
import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
import uuid
from functools import cache
from pathlib import Path

import anndata
import numpy as np
import pytest

from scgpt_ray.cli import DONE, FAILED, main
from tests.forked import Forked

pytestmark = [pytest.mark.slow, pytest.mark.ray]

STORE, NOTE, NOTES = 80 * 2**20, 2**19, ("--obs-columns", "note")
"""Bytes of the object store, about the least that Ray allows, and of a text that each cell carries along."""


may_mount = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root may mount")


def mount(*words):
    """Mount something that only this process and those below it see."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x20000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWNS of <linux/sched.h>
    for each in (["--make-rprivate", "/"], words):
        subprocess.run(["mount", *each], check=True)


def driver(words):
    """Commands, with "and" between them, on a small Ray in this process."""
    import ray

    if "MOUNT" in os.environ:
        mount(*os.environ["MOUNT"].split())
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=len(os.sched_getaffinity(0)),  # as many threads as the serial run
        object_store_memory=STORE,
        _memory=2**32,  # whatever the machine has
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_spilling_directory=os.environ.get("SPILL"),
    )
    commands = [[*group] for is_and, group in itertools.groupby(words, "and".__eq__) if not is_and]
    return max(main([*command, "--executor", "ray"]) for command in commands)


def start(words, place, **environment):
    """The driver in a process."""
    environment = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0", **environment}
    return Forked(words, place, os.environ | environment, function=(__name__, "driver"))


def end(process):
    """(exit code, what it says last) of a process."""
    _, log = process.communicate()
    assert "Traceback" not in log, log
    return process.poll(), log.splitlines()[-1]


@pytest.fixture
def session():
    """Where Ray puts its logs; short, because its sockets lie below it."""
    folder = Path("/tmp") / f"scgpt-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def embed(atlas, checkpoint, output, n, *more):
    return [
        "embed", "--atlas", str(atlas), "--checkpoint", str(checkpoint), "--output", str(output),
        "--cells-per-partition", str(n), *more,
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


@pytest.fixture(scope="module")
def whole(large, checkpoint, tmp_path_factory):
    """Parts of the large atlas by one process: whole(cells per partition)."""

    @cache
    def make(n):
        output = tmp_path_factory.mktemp("whole") / "out"
        assert main([*embed(large, checkpoint, output, n, *NOTES), "--executor", "serial"]) == DONE
        return parts(output)

    return make


def test_partitions_that_do_not_fit_into_the_object_store(large, checkpoint, whole, tmp_path):
    """Together, or alone."""
    together, alone = (embed(large, checkpoint, tmp_path / str(n), n, *NOTES) for n in (40, 200))
    assert end(start([*together, "and", *alone], tmp_path))[0] == DONE
    assert parts(tmp_path / "40") == whole(40)
    assert parts(tmp_path / "200") == whole(200)


@may_mount
def test_a_partition_for_which_the_disk_has_no_room_either(large, checkpoint, whole, session, tmp_path):
    """It has 100 MB, the object store 80, and the folder to which Ray spills 5."""
    words, spill = embed(large, checkpoint, tmp_path / "out", 200, *NOTES), session / "spill"
    spill.mkdir()
    code, said = end(
        start(words, tmp_path, MOUNT=f"-t tmpfs -o size=5m tmpfs {spill}", SPILL=str(spill), RAY_TMPDIR=str(session))
    )
    assert (code, said) == (
        FAILED,
        "scgpt-ray: Ray's object store is full, and so is the disk that it spills to; free some space in Ray's "
        "temporary folder (RAY_TMPDIR), or give the object store more memory; run the same command again to resume",
    )
    assert not (tmp_path / "out" / "parts").exists()
    assert main([*words, "--executor", "serial"]) == DONE
    assert parts(tmp_path / "out") == whole(200)


@may_mount
def test_workers_that_the_monitor_of_memory_kills(blood_file, checkpoint, session, tmp_path):
    """The machine seems to run out of memory while cells are embedded, until Ray has killed a worker."""
    output, meminfo = tmp_path / "out", session / "meminfo"
    words = [embed(blood_file, checkpoint, tmp_path / name, 4) for name in ("out", "whole")]
    known = re.sub(r"(?<=MemTotal:).*", f"{2**23:>16} kB", Path("/proc/meminfo").read_text())
    enough, little = (re.sub(r"(?<=MemAvailable:).*", f"{n:>16} kB", known) for n in (2**22, 2**10))
    meminfo.write_text(enough)
    environment = {"RAY_TMPDIR": str(session), "RAY_BACKEND_LOG_LEVEL": "info"}
    with start(words[0], tmp_path, MOUNT=f"--bind {meminfo} /proc/meminfo", **environment) as process:
        process.until(lambda: list(output.glob("parts/part-*")), 0.05)
        overwrite(meminfo, little)
        process.until(lambda: has_killed(session), 0.05)
        overwrite(meminfo, enough)
        assert end(process)[0] == DONE
    assert main([*words[1], "--executor", "serial"]) == DONE
    assert parts(output) == parts(tmp_path / "whole")


def overwrite(path, text):
    """Replace the text of a file by one of the same length, without a moment at which it is empty."""
    with path.open("r+") as file:
        file.write(text)


def has_killed(session):
    """Whether the raylet has killed a worker because memory was short."""
    logs = session.glob("ray/session_2*/logs/raylet.out")
    return any(re.search(r"Ray killed \d+ worker", log.read_text(errors="replace")) for log in logs)
