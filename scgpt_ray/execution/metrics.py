"""Metrics of runs in Ray, which each node exports in the format of Prometheus.

Ray puts `ray_` before the names; the label `output` is the output folder of the run. The node of the driver exports
them. Ray drops a level 20 s after it was last recorded, so that the levels of a run end with it.
"""

from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Counter, Gauge

COUNTS = {
    "cells": "Cells whose embeddings are committed.",
    "tokens": "Tokens of these cells.",
    "bytes": "Bytes of the parts that were written.",
    "retries": "Attempts at partitions that were repeated.",
    "quarantined": "Cells that could not be read or embedded.",
}
"""Name -> what is counted; exported as `ray_scgpt_ray_NAME_total`."""

LEVELS = {
    "queue": "Partitions that are not committed yet.",
    "busy_share": "Share of the time in which an actor computes, 0 to 1.",
}
"""Name -> what is measured; exported as `ray_scgpt_ray_NAME`."""


def record(output: str, counts: Mapping[str, int], levels: Mapping[str, float]) -> None:
    """Add to counters and set gauges; see `Executor.report`."""
    for name, number in counts.items():
        if number:  # Ray refuses to add 0
            _counter(name).inc(number, {"output": output})
    for name, value in levels.items():
        _gauge(name).set(value, {"output": output})


@cache
def _counter(name: str) -> Counter:
    return Counter(f"scgpt_ray_{name}", description=COUNTS[name], tag_keys=("output",))


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"scgpt_ray_{name}", description=LEVELS[name], tag_keys=("output",))
