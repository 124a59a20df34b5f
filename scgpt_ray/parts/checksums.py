"""Checksums as `sha256sum -c` reads them, and folders that appear with those of all their files."""

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"


def line_of(path: Path, name: str) -> str:
    """The line of a file: SHA-256 (hex), two spaces, name."""
    with path.open("rb") as stream:
        return f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {name}\n"
