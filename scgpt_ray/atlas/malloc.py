"""The C heap of a process that reads: memory that is freed stays with the process, to be used by the next block.

A block of a SOMA experiment passes through hundreds of MiB of buffers, which glibc by default hands back to the
system when they are freed and gets back page by page for the next block: a fifth of the CPU time of a reader. The
peak stays as it was, and it stays for the life of the process.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Numbers of glibc's mallopt(3)."""

_KEPT_BYTES = 2**30
_LARGEST_FROM_HEAP = 2**25
"""The most that mallopt accepts; larger arrays get pages of their own."""


@cache
def keep_freed_memory() -> bool:
    """Tell the C library, once per process; returns whether it is one that listens (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
    # TileDB's thread would have an arena of its own, which is unmapped as soon as it is empty, whatever the threshold.
    mallopt(_ARENA_MAX, 1)
    return True
