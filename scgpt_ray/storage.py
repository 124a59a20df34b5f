"""Folders on a disk or an object store, in which files are written atomically."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from scgpt_ray.errors import OutputError

_COPIED_BYTES = 2**22


@dataclass(frozen=True)
class Folder:
    """A folder, as a path or a URI (`s3://`, `gs://`); names of files are relative to it, with `/`.

    A local file is written under a temporary name in the same folder, flushed to the disk and renamed; on an object
    store it is one upload, which is atomic. Folders pickle; connections are made where they are used.
    """

    uri: str

    @classmethod
    def at(cls, place: str | os.PathLike[str]) -> "Folder":
        """Make a folder of a path or URI; relative paths are resolved, so that other processes find the same place."""
        text = os.fspath(place)
        return cls(text.rstrip("/") if "://" in text else str(Path(text).expanduser().resolve()))

    @property
    def is_local(self) -> bool:
        """Whether the folder is a path, not a URI."""
        return "://" not in self.uri

    @property
    def path(self) -> Path:
        """The path of a local folder."""
        assert self.is_local, f"{self.uri} has no local path"
        return Path(self.uri)

    @cached_property
    def _remote(self) -> tuple[pafs.FileSystem, str]:
        # With delayed opening a file below 5 MB is one PUT instead of a multipart upload of three requests.
        options = "?allow_delayed_open=true" if self.uri.startswith("s3://") else ""
        filesystem, root = pafs.FileSystem.from_uri(self.uri + options)
        return filesystem, root

    def folder(self, name: str) -> "Folder":
        """A subfolder."""
        return Folder(f"{self.uri}/{name}")

    def where(self, name: str) -> str:
        """Full path or URI of a file."""
        return f"{self.uri}/{name}"

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        if self.is_local:
            return (self.path / name).is_file()
        filesystem, root = self._remote
        return bool(filesystem.get_file_info(f"{root}/{name}").type == pafs.FileType.File)

    def names(self) -> list[str]:
        """Sorted names of the files in this folder, without subfolders and temporary files."""
        if self.is_local:
            found = [entry.name for entry in self.path.iterdir() if entry.is_file()] if self.path.is_dir() else []
        else:
            filesystem, root = self._remote
            selector = pafs.FileSelector(root, allow_not_found=True)
            found = [i.base_name for i in filesystem.get_file_info(selector) if i.type == pafs.FileType.File]
        return sorted(name for name in found if not name.startswith("."))

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        if self.is_local:
            return (self.path / name).read_bytes()
        with self.open(name) as stream:
            return bytes(stream.read())

    def open(self, name: str) -> pa.NativeFile:
        """Open a file for random access with pyarrow."""
        if self.is_local:
            return pa.OSFile(str(self.path / name), "rb")
        filesystem, root = self._remote
        return filesystem.open_input_file(f"{root}/{name}")

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file atomically, replacing an existing one.

        Raises:
            OSError: If the file cannot be written, such as to a full disk; nothing is left behind.
        """
        if not self.is_local:
            filesystem, root = self._remote
            with filesystem.open_output_stream(f"{root}/{name}") as stream:
                stream.write(content)
            return
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A local path to which the block writes a file too large for memory; the file is committed after the block.

        For an object store the file is uploaded then, and needs space on the local disk until it is.

        Raises:
            OSError: If the file cannot be written.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory() as scratch:
                written = Path(scratch) / "staged"
                yield written
                filesystem, root = self._remote
                with written.open("rb") as source, filesystem.open_output_stream(f"{root}/{name}") as stream:
                    shutil.copyfileobj(source, stream, _COPIED_BYTES)
            return
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""
        if self.is_local:
            place = self.path / name
            return place.stat().st_size if place.is_file() else None
        filesystem, root = self._remote
        info = filesystem.get_file_info(f"{root}/{name}")
        return int(info.size) if info.type == pafs.FileType.File else None

    def fetch(self, name: str, cache: Path) -> Path:
        """A local path to a file, as memory maps need it; files of an object store are copied to `cache`.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        if self.is_local:
            return self.path / name
        copy = cache / name.replace("/", "_")
        with self.open(name) as source, copy.open("wb") as stream:
            shutil.copyfileobj(source, stream, _COPIED_BYTES)
        return copy

    def remove(self, name: str) -> None:
        """Delete a file."""
        if self.is_local:
            (self.path / name).unlink()
        else:
            filesystem, root = self._remote
            filesystem.delete_file(f"{root}/{name}")

    def require_writable(self) -> None:
        """Check that files can be written, without leaving one behind.

        Raises:
            OutputError: If they cannot.
        """
        remedy = "give --output a folder you may write to"
        if not self.is_local:
            probe = f".write-test-{uuid.uuid4().hex[:8]}"
            try:
                self.write(probe, b"")
                self.remove(probe)
            except (OSError, pa.ArrowException) as error:
                raise OutputError(f"{self.uri}: {error}", expected="a writable place", remedy=remedy) from error
            return
        existing = next(parent for parent in (self.path, *self.path.parents) if parent.exists())
        try:
            with tempfile.TemporaryDirectory(dir=existing, prefix=".write-test-"):
                return
        except OSError as error:
            raise OutputError(
                f"{self.uri} cannot be written ({error.strerror})", expected="a writable folder", remedy=remedy
            ) from error
