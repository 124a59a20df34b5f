"""What is going on, on stderr: one line with a clock on a terminal, a log line every half minute otherwise.

Stages nest. The line shows all of them, and what the innermost one has done and is doing:

    00:41  map > embed: 128 of 140 cells, 14.1/s, 00:01 left; read partition 1
"""

import logging
import shutil
import sys
import threading
import time
from contextlib import ContextDecorator
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

_TICK_S = 1.0
_LINE_EVERY_S = 30.0
_LONG_S = 1.0
"""A stage that took longer leaves a log line."""

_CLEAR = "\r\x1b[K"

_stages: list["Stage"] = []
_lock = threading.RLock()
_over = threading.Event()


class Stage(ContextDecorator):
    """Work that is shown while it goes on, in one thread of a process at a time: a context manager, or a decorator.

    Args:
        what: The work.
        total: Number of units of the work; None if unknown.
        done: Units that an earlier run has done.
        unit: What is counted, in plural.
        brief: Whether it leaves no log line, being one of many.
    """

    def __init__(
        self, what: str, total: int | None = None, *, done: int = 0, unit: str = "cells", brief: bool = False
    ) -> None:
        self.what, self.total, self.done, self.unit, self.brief = what, total, done, unit, brief
        self.note = ""
        """What is being done at the moment."""
        self.start_at(done)

    def start_at(self, done: int) -> None:
        """Count rates from now on; so many units are done."""
        self.done = self._first = done
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self.start_at(self.done)
        with _lock:
            if _stages:
                _stages[-1].note = ""
            _stages.append(self)
            if len(_stages) == 1:
                _over.clear()
                threading.Thread(target=_tick, name="progress", daemon=True).start()
        _draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        path = _path()
        with _lock:
            _stages.remove(self)
            _erase()
            if not _stages:
                _over.set()
        if error is None and self.elapsed >= _LONG_S and not self.brief:
            count = f"{self.done:,} {self.unit} in " if self.total is not None else ""
            logger.info("%s: %s%.0f s", path, count, self.elapsed)
        _draw()

    def advance(self, n: int = 1) -> None:
        """Count units that are done."""
        self.done += n
        self.note = ""

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began, more than 0."""
        return max(time.monotonic() - self._began, 1e-9)

    def text(self) -> str:
        """Units done, rate and remaining time; and what is being done."""
        parts = []
        if self.total is not None:
            rate = (self.done - self._first) / self.elapsed
            parts.append(f"{self.done:,} of {self.total:,} {self.unit}")
            if rate:
                parts += [f"{rate:,.1f}/s", f"{_clock((self.total - self.done) / rate)} left"]
        return "; ".join(filter(None, (", ".join(parts), self.note)))


class LogHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log records to stderr, above the line of the stages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        with _lock:
            _erase()
            super().emit(record)
            _draw()


def note(what: str) -> None:
    """Say what the innermost stage is doing at the moment."""
    with _lock:
        if _stages:
            _stages[-1].note = what
    _draw()


def _tick() -> None:
    """Redraw the line every second; or, without a terminal, log it from time to time."""
    last = time.monotonic()
    while not _over.wait(_TICK_S):
        if sys.stderr.isatty():
            _draw()
        elif time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            logger.info("%s", _line())


def _line() -> str:
    with _lock:
        text = _stages[-1].text() if _stages else ""
        return _path() + (f": {text}" if text else "")


def _path() -> str:
    return " > ".join(stage.what for stage in _stages)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _draw() -> None:
    with _lock:
        if _stages and sys.stderr.isatty():
            line = f"{_clock(_stages[0].elapsed)}  {_line()}"
            sys.stderr.write(_CLEAR + line[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()


def _erase() -> None:
    if sys.stderr.isatty():
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()
