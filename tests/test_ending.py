"""Signals, and the record of how a run ended."""

import contextlib
import json
import os
import signal
import sqlite3
import sys
import threading
import time

import pytest

from scgpt_ray import tracking
from scgpt_ray.cli import main
from scgpt_ray.ending import RESULT, Terminated, interruptible, write_result
from scgpt_ray.storage import Folder


def test_sigterm_is_an_exception_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), interruptible():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "a second one ends the process"
    assert signal.getsignal(signal.SIGTERM) == before


class Hook:
    """Its end runs a function from which Python drops exceptions."""

    def __init__(self, function):
        self.__class__.__del__ = function


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("is_ray_starting", [False, True])
def test_a_signal_in_a_hook_is_not_lost(number, is_ray_starting):
    """As after a fork, where a process that starts others spends much of its time."""

    def be_signalled(_):
        os.kill(os.getpid(), number)
        signal.pause()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught, interruptible():
            if is_ray_starting:
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            Hook(be_signalled)
            time.sleep(60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.type is (Terminated if number == signal.SIGTERM else KeyboardInterrupt)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_exceptions_in_a_hook_change_nothing():
    def fail(_):
        raise ValueError

    with interruptible():
        Hook(fail)


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_signal_in_compiled_code_ends_everything_as_that_signal(
    stop, code, blood_file, checkpoint, tmp_path, monkeypatch, capsys
):
    """Exit code, result and MLflow agree on what Python reports of a C function that leaves an exception behind."""

    def finish(*_):
        raise SystemError("returned a result with an exception set") from stop()

    monkeypatch.setattr("scgpt_ray.pipelines.embed.finish", finish)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for patience in ("_HURRY_S", "_ANSWER_S"):
        monkeypatch.setattr(tracking, patience, 60.0)
    output = tmp_path / "out"
    places = ["--atlas", str(blood_file), "--checkpoint", str(checkpoint), "--output", str(output)]
    assert main(["embed", *places, "--executor", "serial"]) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith("scgpt-ray: interrupted; ")
    result = json.loads((output / RESULT).read_text())
    assert (result["status"], result["exit_code"]) == ("interrupted", code)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_the_result_is_written_where_the_run_has_made_a_folder(tmp_path):
    write_result(str(tmp_path / "absent"), {"status": "failed"})
    assert list(tmp_path.iterdir()) == []
    write_result(str(tmp_path), {"status": "failed"})
    assert json.loads((tmp_path / RESULT).read_text()) == {"status": "failed"}


def test_on_an_object_store_a_file_is_no_folder(s3):
    bucket = Folder.at(s3)
    bucket.write("cells.h5ad", b"exported")
    bucket.write("run/plan.json", b"{}")
    for name in ("cells.h5ad", "absent", "run"):
        write_result(f"{s3}/{name}", {"status": "failed"})
    assert [bucket.folder(name).names() for name in ("cells.h5ad", "absent")] == [[], []]
    assert bucket.folder("run").names() == ["plan.json", RESULT]


def test_a_result_that_cannot_be_written_is_logged(tmp_path, caplog):
    (tmp_path / RESULT).mkdir()
    write_result(str(tmp_path), {"status": "done"})
    assert "result.json cannot be written" in caplog.text
