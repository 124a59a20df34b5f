"""Progress of a run: a bar on a terminal or in a notebook, periodic log lines otherwise."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


class Progress:
    """Cells done, rates and remaining time, as a context manager.

    Args:
        total: Number of planned cells.
        done: Number of cells committed by an earlier run.
        what: The work, one word.
    """

    def __init__(self, total: int, done: int, what: str = "embed") -> None:
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=" cells",
            unit_scale=True,
            disable=not (sys.stderr.isatty() or _in_notebook()),
            desc=what,
        )
        self._total, self._done = total, done
        self._counts: Counter[str] = Counter()
        self._busy_s = 0.0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, counts: Mapping[str, int], busy_s: float = 0.0) -> None:
        """Count one committed part.

        Args:
            counts: Its cells, tokens and bytes, and what else is counted.
            busy_s: Seconds that an actor computed it.
        """
        self._counts.update(counts)
        self._busy_s += busy_s
        self._bar.update(counts["cells"])
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            done, rate = self._done + self._counts["cells"], self._counts["cells"] / self._elapsed
            logger.info("%d of %d cells, %.1f cells/s, %.0f s left",
                        done, self._total, rate, (self._total - done) / rate)  # fmt: skip

    def busy_share(self, actors: int) -> float:
        """Share of the time in which one of so many actors computes, 0 to 1."""
        return self._busy_s / self._elapsed / actors

    def metrics(self) -> dict[str, float]:
        """All that was counted in this run, the cells that are done, and rates: cells/s, tokens/s."""
        rates = {f"{name}_per_s": self._counts[name] / self._elapsed for name in ("cells", "tokens")}
        return {**self._counts, "cells": self._done + self._counts["cells"], **rates}

    @property
    def _elapsed(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)
