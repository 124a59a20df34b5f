"""One run at a time writes into a folder; what a dead one holds is taken over."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

import scgpt_ray
from scgpt_ray import lease as leases
from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.ending import interruptible
from scgpt_ray.errors import OutputError
from scgpt_ray.lease import EXPIRES_S, Lease, hold
from scgpt_ray.storage import Folder
from tests.forked import Forked

HOLDER = """
import sys, time
from scgpt_ray.lease import hold
from scgpt_ray.storage import Folder
with hold(Folder.at(sys.argv[1]), "embed"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def of_another_machine(folder, age_s):
    """Write the lease of a run elsewhere."""
    there = Lease.of_this_process("index").replace(
        machine="elsewhere", host="node-7", pid=4321, job="raysubmit_x", began=time.time() - 5000,
        heartbeat=time.time() - age_s,
    )  # fmt: skip
    there.write(folder)
    return there


def test_a_second_run_is_told_who_holds_the_folder(holder, tmp_path):
    message = rf"{tmp_path} is in use by embed on .* \(pid {holder.pid}\), which began \d+ s ago .* sign of life \d+ s"
    with pytest.raises(OutputError, match=message), hold(Folder.at(tmp_path), "embed"):
        pass
    assert Lease.read(Folder.at(tmp_path)).pid == holder.pid


def test_the_lease_of_a_killed_process_is_taken_over_at_once(holder, tmp_path, caplog):
    """Its remains, which the parent has not waited for, do not count."""
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with hold(Folder.at(tmp_path), "embed"):
        assert Lease.read(Folder.at(tmp_path)).pid == os.getpid()
    assert f"taking over from embed on {leases.socket.gethostname()} (pid {holder.pid})" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_process_with_the_number_of_a_dead_one_does_not_hold_its_lease(tmp_path):
    Lease.of_this_process("embed").replace(process="1").write(Folder.at(tmp_path))
    with hold(Folder.at(tmp_path), "embed"):
        pass


def test_the_lease_of_another_machine_expires(tmp_path):
    folder = Folder.at(tmp_path)
    of_another_machine(folder, EXPIRES_S - 5)
    with pytest.raises(OutputError, match=r"index on node-7 \(pid 4321, job raysubmit_x\)"), hold(folder, "embed"):
        pass
    of_another_machine(folder, EXPIRES_S + 5)
    with hold(folder, "embed"):
        assert Lease.read(folder).verb == "embed"


def test_of_many_that_take_over_one_wins(tmp_path):
    """All see the same dead lease; one holds the folder at a time."""
    folder, start = Folder.at(tmp_path), threading.Barrier(8)
    of_another_machine(folder, EXPIRES_S + 5)
    won, holders, most = [], [], []

    def run():
        start.wait()
        try:
            with hold(folder, "embed"):
                holders.append(1)
                most.append(len(holders))
                time.sleep(0.3)
                holders.pop()
                won.append(1)
        except OutputError:
            pass

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_another_run_has_just_taken_over_is_kept(tmp_path, monkeypatch):
    """It is looked at again once no other process can take one."""
    folder, taken = Folder.at(tmp_path), Lease.of_this_process("index")
    of_another_machine(folder, EXPIRES_S + 5)
    alone = leases._alone

    @contextmanager
    def late(place):
        taken.write(folder)
        with alone(place):
            yield

    monkeypatch.setattr(leases, "_alone", late)
    with pytest.raises(OutputError, match="in use by index"), hold(folder, "embed"):
        pass
    assert Lease.read(folder) == taken


def test_the_lock_of_a_killed_process_is_no_hindrance(tmp_path):
    (tmp_path / f".{Lease.file}.lock").touch()
    with hold(Folder.at(tmp_path), "embed"):
        assert [path.name for path in tmp_path.iterdir()] == [Lease.file]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with pytest.raises(OutputError, match="bad"), hold(Folder.at(tmp_path / "a" / "b"), "embed"):
        assert (tmp_path / "a" / "b" / Lease.file).exists()
        raise OutputError("bad", expected="e", remedy="r")
    assert list(tmp_path.iterdir()) == []
    with hold(Folder.at(tmp_path / "a" / "b"), "embed"):
        (tmp_path / "a" / "b" / "x").touch()
    assert (tmp_path / "a" / "b" / "x").exists()


def test_files_that_a_killed_run_had_not_finished_are_removed(tmp_path):
    """Those of leases, too: others write theirs only while no lease is held."""
    (tmp_path / "parts").mkdir()
    kept = [tmp_path / "parts" / "part-0", tmp_path / "parts" / "x.tmp"]
    for path in (*kept, tmp_path / "parts" / ".part-1.x.tmp", tmp_path / ".y.tmp", tmp_path / f".{Lease.file}.x.tmp"):
        path.touch()
    with hold(Folder.at(tmp_path), "embed"):
        pass
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_waiting(holder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(leases, "_POLL_S", 0.05)
    caplog.set_level("INFO")
    timer = threading.Timer(0.3, holder.kill)
    timer.start()
    began = time.monotonic()
    with hold(Folder.at(tmp_path), "embed", wait=True):
        assert time.monotonic() - began >= 0.2
    assert "waiting for embed on" in caplog.text
    timer.join()


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "shell script"])
def on_interrupt(request):
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("on_interrupt")
def test_signs_of_life_and_a_lease_that_is_lost(tmp_path, monkeypatch, caplog):
    """A run that another has taken over from, such as after a long suspension, is interrupted."""
    monkeypatch.setattr(leases, "_BEAT_S", 0.05)
    folder = Folder.at(tmp_path)
    with pytest.raises(KeyboardInterrupt), interruptible(), hold(folder, "embed"):
        began = Lease.read(folder)
        while Lease.read(folder).heartbeat == began.heartbeat:
            time.sleep(0.01)
        theirs = of_another_machine(folder, 0)
        time.sleep(60)
    assert f"{tmp_path} was taken over by index on node-7" in caplog.text
    assert Lease.read(folder) == theirs, "it is not given back"


@pytest.mark.parametrize("name", ["file", "file/out"])
def test_a_folder_that_cannot_be_written_is_the_verbs_to_report(tmp_path, caplog, name):
    caplog.set_level("INFO")
    (tmp_path / "file").touch()
    with hold(Folder.at(tmp_path / name), "embed"):
        assert not caplog.text


def test_a_folder_that_can_be_written_but_not_locked(tmp_path, monkeypatch, caplog):
    """As on some network file systems: the run goes on, and says that others may write, too."""
    caplog.set_level("INFO")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with hold(Folder.at(tmp_path), "embed"):
        assert f"no lease of {tmp_path}: [Errno {errno.ENOLCK}] No locks available" in caplog.text


@pytest.mark.parametrize(("mark", "name"), [("index.json", "index"), ("request.json", "pretrain")])
def test_one_verb_a_folder(blood_file, checkpoint, tmp_path, mark, name):
    (tmp_path / mark).touch()
    message = rf"{tmp_path} holds the output of {name} \({mark}\)"
    with pytest.raises(OutputError, match=message):
        scgpt_ray.embed(atlas=str(blood_file), checkpoint=str(checkpoint), output=str(tmp_path), executor="serial")
    assert [path.name for path in tmp_path.iterdir()] == [mark]


def command(blood_file, checkpoint, output, *more):
    return [
        sys.executable, "-m", "scgpt_ray", "embed", "--atlas", str(blood_file), "--checkpoint", str(checkpoint),
        "--output", str(output), "--executor", "serial", "--cells-per-partition", "10", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_two_commands_into_one_folder(blood_file, checkpoint, tmp_path, capsys, caplog):
    """The second is told of the first with exit code 2; after kill -9 of the first it goes on at once."""
    output = tmp_path / "out"
    words = command(blood_file, checkpoint, output)
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(output.glob("parts/part-*")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    assert main(words[3:]) == BAD_INPUT
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"out is in use by embed on {os.uname().nodename} (pid {first.pid})" in said
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie from here on
    assert main(words[3:]) == DONE
    first.communicate()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_cells"] == 260
    assert "taking over from embed" in caplog.text
    assert not (output / Lease.file).exists()
    interrupted = Forked(command(blood_file, checkpoint, tmp_path / "other")[3:], tmp_path)
    interrupted.until((tmp_path / "other" / "plan.json").exists)
    interrupted.send_signal(signal.SIGTERM)
    assert interrupted.wait(30) == 143
    assert not (tmp_path / "other" / Lease.file).exists()


@pytest.mark.slow
def test_an_object_store(monkeypatch, caplog):
    """Without conditional writes the last of two that looked at once has the lease, and the other sees it."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    boto3 = pytest.importorskip("boto3", reason="needs moto[s3]")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for name, value in {**address, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        folder = Folder.at("s3://bucket/out")
        caplog.set_level("INFO")
        with hold(folder, "embed"):
            assert Lease.read(folder).pid == os.getpid()
            with pytest.raises(OutputError, match="s3://bucket/out is in use by embed"), hold(folder, "embed"):
                pass
        assert folder.names() == []
        assert caplog.text.count("leases of object stores are advisory") == 1
        first, entered = Lease.of_this_process("embed"), []
        thread = threading.Thread(target=lambda: entered.append(leases._take(folder, first)))
        thread.start()
        time.sleep(leases._SETTLE_S / 3)
        second = of_another_machine(folder, 0)  # has looked before the first wrote
        thread.join()
        assert entered == [False]
        assert Lease.read(folder) == second
    finally:
        server.stop()
