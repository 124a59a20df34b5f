"""Temporary folders that outlive no process for long, however it ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A local folder that is deleted after the block; those of processes that were killed are deleted before it.

    The kernel lets go of the lock of a folder when its process ends, however it ends.
    """
    root, begin = Path(tempfile.gettempdir()), "scgpt-ray-temporary-"
    for left in root.glob(f"{begin}*"):
        with suppress(OSError), _locked(left):  # in use, gone, or of another user
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{begin}"))
    with _locked(made):  # before another process can see it
        place = made.rename(made.with_name(made.name[1:]))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
