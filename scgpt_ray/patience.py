"""Waiting for an object store that is busy or away for a while."""

import logging
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

logger = logging.getLogger(__name__)

LONGEST_S = 900.0
"""How long a store is waited for, at each request."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
"""Short enough for a store that is busy most of the time to be met while it is not."""

_waits = ContextVar("waits", default=True)

_BUSY = re.compile(
    r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT|INTERNAL_FAILURE"
    r"|HTTP status (429|500|502|503|504)|HTTP Response Code: (429|500|502|503|504)"
)
_AWAY = re.compile(r"NETWORK_CONNECTION|curlCode: \d+")
"""As Arrow and TileDB word the answers of AWS's library."""

Answer = TypeVar("Answer")


def patiently(ask: Callable[[], Answer], what: str, *, even_away: bool = True) -> Answer:
    """Ask again while a store is busy or away: after pauses that double, with jitter, for a quarter of an hour.

    A run that was interrupted, and is cleaning up, asks once.

    Args:
        ask: Asks once; it is repeated as a whole.
        what: What is waited for, for the log.
        even_away: Whether a store that cannot be connected to is waited for, too.

    Raises:
        Exception: What `ask` raises, if waiting does not help or has not helped.
    """
    longest = LONGEST_S if _waits.get() and not isinstance(sys.exception(), KeyboardInterrupt) else 0.0
    began, pause = time.monotonic(), _FIRST_PAUSE_S
    while True:
        try:
            return ask()
        except (OSError, ValueError, RuntimeError) as error:  # pyarrow's and TileDB's are among them
            left = longest - (time.monotonic() - began)
            if left <= 0 or not _passes(error, even_away=even_away):
                raise
            wait = pause * random.uniform(0.5, 1.0)
            reason = " ".join(str(error).split())
            logger.warning("%s: waiting %.1f s, at most %.0f min more (%s)", what, wait, left / 60, reason)
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


@contextmanager
def impatient() -> Iterator[None]:
    """Ask stores once in a block."""
    token = _waits.set(False)
    try:
        yield
    finally:
        _waits.reset(token)


def _passes(error: Exception, *, even_away: bool) -> bool:
    text = str(error)
    return bool(_BUSY.search(text) or (even_away and _AWAY.search(text)))
