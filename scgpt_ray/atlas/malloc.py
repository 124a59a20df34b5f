"""glibc's malloc: whether freed memory stays in the process.

In readers it does, and is reused for the next block. Reading a block of a SOMA experiment allocates hundreds of MiB of
buffers. By default glibc returns them to the system when they are freed, and gets them back page by page for the next
block: a fifth of the CPU time of a reader. Keeping them does not raise the peak memory, but the process holds it until
it ends.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameter numbers of glibc's mallopt(3)."""

_KEPT_BYTES = 2**30
_LARGEST_FROM_HEAP = 2**25
"""Largest threshold that mallopt accepts; larger arrays are mapped one by one."""


@cache
def keep_freed_memory() -> bool:
    """Configure malloc, once per process; returns whether the C library supports it (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
    # A second arena, for TileDB's thread, would be unmapped as soon as it is empty, whatever the threshold.
    mallopt(_ARENA_MAX, 1)
    return True


def return_freed_memory() -> None:
    """Return freed memory to the system, where the C library can (glibc); by itself it keeps small pieces."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
