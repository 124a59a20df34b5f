"""Signals, and the record of how a run ended."""

import json
import os
import signal
import threading

import pytest

from scgpt_ray.ending import RESULT, Terminated, interruptible, write_result


def test_sigterm_is_an_exception_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), interruptible():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "a second one ends the process"
    assert signal.getsignal(signal.SIGTERM) == before


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


def test_a_result_that_cannot_be_written_is_logged(tmp_path, caplog):
    (tmp_path / RESULT).mkdir()
    write_result(str(tmp_path), {"status": "done"})
    assert "result.json cannot be written" in caplog.text
