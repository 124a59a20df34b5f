"""The progress of a stream of partitions: what was counted, for people, MLflow and the cluster's metrics."""

from collections import Counter
from collections.abc import Mapping

from scgpt_ray.progress import Stage


class Progress(Stage):
    """Cells done, rates and remaining time, as a context manager.

    Args:
        what: The work.
        total: Number of planned cells.
        done: Number of cells committed by an earlier run.
    """

    def __init__(self, what: str, total: int, done: int) -> None:
        super().__init__(what, total, done=done)
        self._counts: Counter[str] = Counter()
        self._busy_s = 0.0

    def add(self, counts: Mapping[str, int], busy_s: float = 0.0) -> None:
        """Count one committed part.

        Args:
            counts: Its cells, tokens and bytes, and what else is counted.
            busy_s: Seconds that an actor computed it.
        """
        self._counts.update(counts)
        self._busy_s += busy_s
        self.advance(counts["cells"])

    def busy_share(self, actors: int) -> float:
        """Share of the time in which one of so many actors computes, 0 to 1."""
        return self._busy_s / self.elapsed / actors

    def metrics(self) -> dict[str, float]:
        """All that was counted in this run, the cells that are done, and rates: cells/s, tokens/s."""
        rates = {f"{name}_per_s": self._counts[name] / self.elapsed for name in ("cells", "tokens")}
        return {**self._counts, "cells": self.done, **rates}
