"""Time of work on a device: over batches of launches, so that the host's share is hidden as it is in a real run."""

import math
import statistics
import time
from collections.abc import Callable

import torch

BATCHES = 5
"""Whose median is taken."""

_MOST_LAUNCHES = 1000


def seconds_per_launch(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median over batches of the time of a launch; by CUDA events, or by the clock on a CPU.

    Args:
        work: What to launch; it need not wait for the device.
        device: Where it runs.
        seconds: For all batches.
    """
    batch_seconds = _by_events if device.type == "cuda" else _by_clock
    batch_seconds(work, 1)  # compiles and allocates
    launches = min(math.ceil(seconds / BATCHES / batch_seconds(work, 1)), _MOST_LAUNCHES)
    return statistics.median(batch_seconds(work, launches) / launches for _ in range(BATCHES))


def _by_events(work: Callable[[], object], launches: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(launches):
        work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _by_clock(work: Callable[[], object], launches: int) -> float:
    began = time.perf_counter()
    for _ in range(launches):
        work()
    return time.perf_counter() - began
