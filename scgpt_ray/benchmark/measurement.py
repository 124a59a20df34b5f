"""Figures of benchmarks with their settings, and measurement of time and memory."""

import json
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

SECONDS = 10.0
"""Default time per measurement."""

Setting: TypeAlias = dict[str, str | int | float]
"""What a figure was measured with."""

_LEAST_RUNS = 3


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        unit: Unit; empty for a ratio.
    """

    stage: str
    name: str
    value: float
    unit: str
    setting: Setting = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """The figure for JSON, with five significant digits."""
        return {**asdict(self), "value": float(f"{self.value:.5g}")}

    def to_json(self) -> str:
        """The figure as one line of JSON."""
        return json.dumps(self.to_dict())


class Figures(list[Figure]):
    """What a benchmark found."""

    def text(self) -> str:
        """A table for people, and a line of JSON for each figure."""
        return "\n".join([table(self), *(figure.to_json() for figure in self)])

    def to_dict(self) -> dict[str, Any]:
        """The figures, for programs."""
        return {"figures": [figure.to_dict() for figure in self]}


def table(figures: Sequence[Figure]) -> str:
    """Figures as text: one line each, below a line for each setting."""
    width = max((len(figure.name) for figure in figures), default=0)
    lines: list[str] = []
    setting = None
    for figure in figures:
        if figure.setting != setting:
            setting = figure.setting
            lines.append(f"{figure.stage}: " + ", ".join(f"{key} {value}" for key, value in setting.items()))
        lines.append(f"  {figure.name:<{width}}  {figure.value:>12,.4g} {figure.unit}".rstrip())
    return "\n".join(lines)


def median_seconds(work: Callable[[], object], seconds: float) -> float:
    """Median wall time of repeated runs, after a warm-up run.

    Args:
        work: The work to measure; returns when it is finished.
        seconds: Time for all measured runs, of which there are three at least.
    """
    work()
    runs: list[float] = []
    while len(runs) < _LEAST_RUNS or sum(runs) < seconds:
        runs.append(seconds_of(work))
    return statistics.median(runs)


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one run by a clock, by default wall time."""
    started = clock()
    work()
    return clock() - started


def private_bytes() -> int:
    """Private memory of this process in bytes (on Linux; elsewhere peak memory).

    Shared memory is excluded, since a worker would seem to grow when it touches more of Ray's object store.
    """
    return _status_bytes("RssAnon") or peak_bytes()


class PrivatePeak:
    """Largest `private_bytes` within a `with` block, in `most`; looked up every 20 ms by a thread."""

    def __init__(self) -> None:
        self.most = private_bytes()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PrivatePeak":
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, private_bytes())


def peak_bytes() -> int:
    """Peak memory of this process in bytes."""
    # On Linux the peak of getrusage includes the memory of the process that started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status_bytes("VmHWM") or (peak if sys.platform == "darwin" else 1024 * peak)


def _status_bytes(name: str) -> int | None:
    """A field of /proc/self/status in bytes; None if the system is not Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
