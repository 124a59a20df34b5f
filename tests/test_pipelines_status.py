"""What another terminal sees of an output folder: at work, finished, killed, on a disk and on S3."""

import json
import os
import time

import pytest

import scgpt_ray
from scgpt_ray.cli import DONE, main
from scgpt_ray.ending import write_result
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.lease import EXPIRES_S, Lease, hold
from scgpt_ray.records import Manifest, Quarantine, QuarantinedCells
from scgpt_ray.storage import Folder


@pytest.fixture
def at_work(make_embeddings, tmp_path):
    """Makes a folder in which so many of four partitions of five cells are done, the last of them just now."""

    def make(n_parts, seconds_apart=4.0):
        folder = make_embeddings(tmp_path / "run", cells_per_part=5)
        folder.remove(Manifest.file)
        now = time.time()
        for number in range(4):
            part = folder.path / "parts" / f"part-{number:05d}.parquet"
            if number >= n_parts:
                part.unlink()
            else:
                written = now - seconds_apart * (n_parts - 1 - number)
                os.utime(part, (written, written))
        return folder

    return make


def elsewhere(age_s):
    """The lease of a run on another machine that began an hour ago."""
    return Lease.of_this_process("embed").replace(
        machine="elsewhere", host="node-7", pid=4321, job="j", began=time.time() - 3600, heartbeat=time.time() - age_s
    )


def test_a_run_at_work(at_work):
    folder = at_work(2)
    elsewhere(20).write(folder)
    found = scgpt_ray.status(folder=folder.uri)
    done = found.progress
    assert found.state == "running"
    assert (done.parts, done.parts_planned, done.cells, done.cells_planned) == (2, 4, 10, 20)
    assert done.cells_per_s == pytest.approx(5 / 4, rel=1e-3)
    assert done.left_s == pytest.approx(8, rel=1e-3)
    assert 0 <= done.last_part_s < 60
    lines = found.text().splitlines()
    assert lines[:4] == [
        f"folder      {folder.uri}", "state       running", "parts       2 of 4", "cells       10 of 20"
    ]  # fmt: skip
    assert lines[5] == "rate        1.2 cells/s, 8 s left"
    assert lines[7].startswith("lease       embed on node-7 (pid 4321, job j), which began 360")
    assert lines[8] == "last result none"


def test_the_rate_is_that_of_the_run_at_work(at_work):
    """A run that was killed yesterday left the first part; its pause does not count."""
    folder = at_work(3)
    yesterday = time.time() - 86400
    os.utime(folder.path / "parts" / "part-00000.parquet", (yesterday, yesterday))
    elsewhere(1).write(folder)
    assert scgpt_ray.status(folder=folder.uri).progress.cells_per_s == pytest.approx(5 / 4, rel=1e-3)


@pytest.mark.parametrize(
    ("n_parts", "age_s", "result", "state"),
    [
        (0, None, None, "unfinished"),
        (1, EXPIRES_S + 5, None, "killed"),
        (1, EXPIRES_S + 5, {"status": "failed"}, "killed"),
        (1, None, {"status": "failed", "reason": "full"}, "failed"),
        (1, None, {"status": "interrupted"}, "interrupted"),
        (1, 5, {"status": "failed"}, "running"),
    ],
)
def test_states(at_work, n_parts, age_s, result, state):
    folder = at_work(n_parts)
    if age_s is not None:
        elsewhere(age_s).write(folder)
    if result is not None:
        folder.write("result.json", json.dumps({"exit_code": 1, "seconds": 2.5, **result}).encode())
    found = scgpt_ray.status(folder=folder.uri)
    assert found.state == state
    assert (found.progress.cells_per_s, found.progress.left_s) == (None, None)
    assert (found.to_dict()["lease"] is None) == (age_s is None)
    expected = f"{result['status']}, exit code 1, after 2.5 s{': full' * ('reason' in result)}" if result else "none"
    assert found.text().splitlines()[-1] == f"last result {expected}"


def test_cells_in_quarantine_are_not_done(at_work):
    folder = at_work(2)
    lost = QuarantinedCells(partition=1, n_cells=2, joinids=((15, 16),), reason="r", log=())
    later = QuarantinedCells(partition=2, n_cells=1, joinids=((20, 20),), reason="r", log=())
    Quarantine(cells=(lost, later)).write(folder)
    progress = scgpt_ray.status(folder=folder.uri).progress
    assert (progress.cells, progress.quarantined) == (8, 3)


def test_the_command_line_shows_how_a_command_ended(make_embeddings, tmp_path, capsys):
    run = make_embeddings(tmp_path / "run")
    write_result(run.uri, {"status": "done", "exit_code": 0, "seconds": 1.5, "verb": "embed"})
    before = sorted(tmp_path.rglob("*"))
    for words in (["status", run.uri], ["status", "--folder", run.uri]):
        assert main(words) == DONE
        *lines, values = capsys.readouterr().out.splitlines()
        found = json.loads(values)
        assert (found["verb"], found["state"], found["progress"]["parts"]) == ("status", "finished", 3)
        assert (found["lease"], found["result"]["verb"]) == (None, "embed")
        assert lines[-1] == "last result done, exit code 0, after 1.5 s"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(ReferenceSetError, match=r"holds no plan\.json, index\.json, lease\.json or result\.json"):
        scgpt_ray.status(folder=str(tmp_path))
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ReferenceSetError, match=r"result\.json cannot be used"):
        scgpt_ray.status(folder=str(tmp_path))


def test_this_process_at_work(make_embeddings, tmp_path):
    run = make_embeddings(tmp_path / "run")
    with hold(run, "embed"):
        found = scgpt_ray.status(folder=run.uri)
    assert (found.state, found.lease.pid, found.progress.quarantined) == ("running", os.getpid(), 0)
    assert scgpt_ray.status(folder=run.uri).state == "finished"


def test_on_s3(at_work, s3):
    """One listing tells cells and times; no part is opened."""
    local, folder = at_work(2), Folder.at(f"{s3}/run")
    for path in local.path.rglob("*"):
        if path.is_file():
            folder.write(str(path.relative_to(local.path)), path.read_bytes())
    folder.write("parts/part-00001.parquet", b"torn or not")
    elsewhere(20).write(folder)
    found = scgpt_ray.status(folder=folder.uri)
    assert (found.state, found.progress.parts, found.progress.cells) == ("running", 2, 10)
    assert 0 <= found.progress.last_part_s < 60
