"""Progress of a run: a bar on a terminal, periodic log lines otherwise."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0


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
            disable=not sys.stderr.isatty(),
            desc=what,
        )
        self._total, self._done = total, done
        self._cells = self._tokens = 0
        self._busy_s = 0.0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, n_cells: int, n_tokens: int = 0, busy_s: float = 0.0) -> None:
        """Count one committed part.

        Args:
            n_cells: Number of its cells.
            n_tokens: Number of its tokens.
            busy_s: Seconds that an actor computed it.
        """
        self._cells += n_cells
        self._tokens += n_tokens
        self._busy_s += busy_s
        self._bar.update(n_cells)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            rate = self._cells / (now - self._started)
            left = self._total - self._done - self._cells
            logger.info("%d of %d cells, %.1f cells/s, %.0f s left",
                        self._done + self._cells, self._total, rate, left / rate)  # fmt: skip

    def metrics(self, actors: int) -> dict[str, float]:
        """Rates so far: cells/s, tokens/s, and the share of the time in which an actor computes."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return {
            "cells": float(self._done + self._cells),
            "cells_per_s": self._cells / elapsed,
            "tokens_per_s": self._tokens / elapsed,
            "actor_busy_share": self._busy_s / elapsed / actors,
        }
