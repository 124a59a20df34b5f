"""Checksums as `sha256sum -c` reads them, and folders that appear complete, with those of all their files."""

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from scgpt_ray.errors import OutputError
from scgpt_ray.storage import Folder
from scgpt_ray.temporary_folder import temporary_folder

SUMS = "SHA256SUMS"


_READ_BYTES = 2**22
"""Bytes per read, which is a request to an object store."""

_UNFINISHED = ".unfinished-export"
"""File in a folder of an object store while the files are uploaded."""


def line_of(path: Path, name: str) -> str:
    """The line of a file: SHA-256 (hex), two spaces, name."""
    with path.open("rb") as stream:
        return line_of_stream(stream, name)


def line_of_stream(stream: BinaryIO, name: str) -> str:
    """The line of a file that is open."""
    digest = hashlib.sha256()
    while piece := stream.read(_READ_BYTES):
        digest.update(piece)
    return f"{digest.hexdigest()}  {name}\n"


@contextmanager
def new_folder(output: Folder, last: str = "") -> Iterator[Path]:
    """A local folder for the block to fill; after the block it gets SHA256SUMS and becomes the output.

    A local folder is renamed. For an object store the files are uploaded, and need space on the local disk until they
    are; SHA256SUMS comes last. There an interrupted upload may be repeated.

    Args:
        output: Where the folder will be.
        last: Start of the names of files that are uploaded after the others, as readers look for them.

    Raises:
        OutputError: If the output cannot be written, or holds files.
        OSError: If a file cannot be written; nothing is left behind on a disk.
    """
    output.require_writable()
    if _holds_files(output):
        raise OutputError(f"{output.uri} holds files", expected="a new folder", remedy="delete it, or name another")
    if output.is_local:
        output.path.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext(output.path.parent) if output.is_local else temporary_folder() as parent:
        place = parent / f".export.{uuid.uuid4().hex[:8]}.tmp"
        try:
            place.mkdir()
            yield place
            files = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
            (place / SUMS).write_text("".join(line_of(place / name, name) for name in files))
            if output.is_local:
                place.rename(output.path)
                return
            output.write(_UNFINISHED, b"")
            for name in [*sorted(files, key=lambda name: bool(last) and name.startswith(last)), SUMS]:
                with output.staged(name) as path:
                    (place / name).rename(path)
            output.remove(_UNFINISHED)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _holds_files(output: Folder) -> bool:
    if output.is_local:
        return output.path.exists() and any(output.path.iterdir())
    return output.has(SUMS) or (not output.has(_UNFINISHED) and bool(output.names() or output.subfolders()))
