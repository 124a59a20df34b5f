"""Commands as processes that are forked from one which has imported the libraries: that takes longer than their work.

That `python -m scgpt_ray` is the same program, tests of `test_cli.py`, `test_bad_input.py` and `test_faults.py` show.
"""

import atexit
import contextlib
import multiprocessing.forkserver
import os
import signal
import sys
import time
from functools import cache
from pathlib import Path

import psutil
import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.forked_libraries"])


class Forked:
    """A command, as `subprocess.Popen` has it; `out` and `err` are files.

    Args:
        words: Of the command line, verb first.
        place: Folder for what it prints.
        environment: Instead of this process's.
        function: Module and name of what is called with the words, if it is not the command line.
    """

    def __init__(self, words, place, environment=None, function=("scgpt_ray.cli", "main")):
        self.out, self.err = (Path(place) / name for name in ("stdout", "stderr"))
        _ensure_running()
        environment = dict(os.environ if environment is None else environment)
        self._process = CONTEXT.Process(target=_run, args=(words, self.out, self.err, environment, function))
        self._process.start()
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None:
            self.kill()
        self._process.join()

    def poll(self):
        """The exit code, that of a signal below zero; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        assert self.poll() is not None, f"it runs for longer than {timeout} s"
        return self.poll()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def until(self, condition, seconds=0.01):
        """Wait for something that it does before it ends."""
        while not condition():
            assert self.poll() is None, self.err.read_text()
            time.sleep(seconds)

    def communicate(self):
        """What it printed on stdout and stderr."""
        self.wait()
        return self.out.read_text(), self.err.read_text()


def still_alive(processes, seconds):
    """Which of them have not ended after a time; one that has may wait long for the process that adopted it."""
    deadline = time.monotonic() + seconds
    while (there := [one for one in processes if _is_alive(one)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return there


def _is_alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@cache
def _ensure_running():
    """Start the process with the libraries; it looks for them on its own path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()


def _run(words, out, err, environment, function):
    os.setsid()  # as start_new_session
    for number, file in ((1, out), (2, err)):
        with file.open("w") as opened:
            os.dup2(opened.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, name = function
    __import__(module)
    code = getattr(sys.modules[module], name)(words)
    atexit._run_exitfuncs()  # multiprocessing does not
    sys.exit(code)
