"""What a benchmark leaves: figures, each with what it was measured with, and the clock they are read from."""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LEAST_RUNS = 3
"""Runs whose median is taken, even if they take longer than was granted."""


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        stage: What was measured.
        name: Which of its numbers.
        value: The number.
        unit: Its unit; empty for a ratio.
        setting: What it was measured with.
    """

    stage: str
    name: str
    value: float
    unit: str
    setting: dict[str, str | int | float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """The figure, to five digits."""
        return {**asdict(self), "value": float(f"{self.value:.5g}")}

    def to_json(self) -> str:
        """One line."""
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
    """Figures for people: one line each, under a line for each setting."""
    width = max((len(figure.name) for figure in figures), default=0)
    lines: list[str] = []
    setting = None
    for figure in figures:
        if figure.setting != setting:
            setting = figure.setting
            lines.append(f"{figure.stage}: " + ", ".join(f"{key} {value}" for key, value in setting.items()))
        lines.append(f"  {figure.name:<{width}}  {figure.value:>12,.4g} {figure.unit}".rstrip())
    return "\n".join(lines)


def median_seconds(work: Callable[[], object], seconds: float, least_runs: int = LEAST_RUNS) -> float:
    """Median wall time of a piece of work, after one run that does not count.

    Args:
        work: What to do; returns when it is done.
        seconds: Time for all counted runs, unless least_runs take longer.
        least_runs: Runs at least.
    """
    work()
    runs: list[float] = []
    while len(runs) < least_runs or sum(runs) < seconds:
        runs.append(seconds_of(work))
    return statistics.median(runs)


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one run by a clock, of the wall unless told otherwise."""
    started = clock()
    work()
    return clock() - started


def private_bytes() -> int:
    """Memory of this process alone, in bytes; where the system does not tell (it does on Linux), the most it has had.

    Ray's object store is shared memory: a worker seems to grow while it merely touches more of it.
    """
    return _status_bytes("RssAnon") or peak_bytes()


def peak_bytes() -> int:
    """Most memory that this process has had since it began to run its program, in bytes."""
    # What getrusage tells begins with the memory of the process that started this one, which Linux counts too.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status_bytes("VmHWM") or (peak if sys.platform == "darwin" else 1024 * peak)


def _status_bytes(name: str) -> int | None:
    """What Linux tells about the memory of this process under a name."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
