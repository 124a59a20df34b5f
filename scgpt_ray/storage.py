"""Folders on a disk or an object store, in which files are written atomically."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from scgpt_ray.errors import ConfigError, OutputError
from scgpt_ray.object_store import SCHEMES, ObjectStore, current
from scgpt_ray.patience import patiently
from scgpt_ray.ranged_file import RangedFile
from scgpt_ray.temporary_folder import temporary_folder

_COPIED_BYTES = 2**22
_SENT_BYTES = 2**27
"""Bytes of an upload that may wait for the network, in memory."""


@dataclass(frozen=True)
class Folder:
    """A folder, as a path or a URI (`s3://`, `gs://`, `az://`); names of files are relative to it, with `/`.

    A local file is written under a temporary name in the same folder, flushed to the disk and renamed; on an object
    store it is one upload, which is atomic. Folders pickle, with how the store is reached; connections are made where
    they are used. A store that is busy or away is waited for.
    """

    uri: str
    store: ObjectStore = field(default_factory=current, repr=False)

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

    @classmethod
    def of_file(cls, place: str | os.PathLike[str]) -> tuple["Folder", str]:
        """The folder of a file, and the file's name."""
        folder, _, name = cls.at(place).uri.rpartition("/")
        return cls(folder), name

    def folder(self, name: str) -> "Folder":
        """A subfolder."""
        return replace(self, uri=f"{self.uri}/{name}")

    def remote(self, name: str = "") -> tuple[pafs.FileSystem, str]:
        """The file system of a folder that is not local, and the path in it of the folder or of one of its files."""
        scheme, _, place = self.uri.partition("://")
        if scheme in SCHEMES:
            filesystem, root = _bucket(os.getpid(), scheme, place.partition("/")[0], self.store), place
        else:
            filesystem, root = pafs.FileSystem.from_uri(self.uri)
        return filesystem, f"{root}/{name}" if name else root

    def where(self, name: str) -> str:
        """Full path or URI of a file."""
        return f"{self.uri}/{name}"

    def state(self, name: str) -> tuple[int, int] | None:
        """Size of a file in bytes, and when it was written in ns since 1970; None if it does not exist."""
        if self.is_local:
            place = self.path / name
            state = place.stat() if place.is_file() else None
            return (state.st_size, state.st_mtime_ns) if state else None
        filesystem, path = self.remote(name)
        info = patiently(lambda: filesystem.get_file_info(path), self.where(name))
        return (int(info.size), int(info.mtime_ns)) if info.type == pafs.FileType.File else None

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        return self.state(name) is not None

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""
        state = self.state(name)
        return state[0] if state else None

    def names(self) -> list[str]:
        """Sorted names of the files in this folder, without subfolders and temporary files."""
        if self.is_local:
            found = [entry.name for entry in self.path.iterdir() if entry.is_file()] if self.path.is_dir() else []
        else:
            found = [info.base_name for info in self._listed()]
        return sorted(name for name in found if not name.startswith("."))

    def subfolders(self) -> list[str]:
        """Sorted names of the folders in this folder."""
        if self.is_local:
            return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir()) if self.path.is_dir() else []
        return sorted(info.base_name for info in self._listed(kind=pafs.FileType.Directory))

    def states(self) -> dict[str, tuple[int, int]]:
        """What `state` says of each of the files of `names`; of an object store by one listing."""
        if self.is_local:
            states = {name: self.state(name) for name in self.names()}
            return {name: state for name, state in states.items() if state is not None}
        return {info.base_name: (int(info.size), int(info.mtime_ns)) for info in self._listed()}

    def _listed(self, *, kind: pafs.FileType = pafs.FileType.File) -> list[pafs.FileInfo]:
        filesystem, path = self.remote()
        selector = pafs.FileSelector(path, allow_not_found=True)
        infos = patiently(lambda: filesystem.get_file_info(selector), self.uri)
        return [info for info in infos if info.type == kind]

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
        return pa.PythonFile(RangedFile(*self.remote(name)), "r")

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file atomically, replacing an existing one.

        Raises:
            OSError: If the file cannot be written, such as to a full disk; nothing is left behind.
        """
        if not self.is_local:
            self._upload(name, pa.py_buffer(content))
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
            with temporary_folder() as scratch:
                written = scratch / "staged"
                yield written
                with pa.memory_map(str(written)) as source:
                    self._upload(name, source.read_buffer())
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

    def _upload(self, name: str, content: pa.Buffer) -> None:
        """Replace an object, whole or not at all.

        Closing an upload commits what has been sent, and Arrow closes it in any case. So that no exception comes
        between, such as that of a signal, it runs in a separate thread: signals only reach the main one.
        """
        filesystem, path = self.remote(name)
        with ThreadPoolExecutor(1, "upload") as thread:
            send = partial(_send, filesystem, path, content)
            patiently(lambda: thread.submit(send).result(), self.where(name))
        size = self.size(name)
        if size != content.size:
            raise OSError(f"{self.where(name)} has {size} bytes after an upload of {content.size}")

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
            filesystem, path = self.remote(name)
            patiently(lambda: filesystem.delete_file(path), self.where(name))

    def remove_all(self) -> None:
        """Delete the folder with all that is in it."""
        if self.is_local:
            shutil.rmtree(self.path)
        else:
            filesystem, path = self.remote()
            patiently(lambda: filesystem.delete_dir(path), self.uri)

    def unreachable(self, name: str = "") -> str:
        """Why a file or folder, which need not exist, cannot be asked for; empty if it can.

        A store that cannot be connected to is not waited for.
        """
        if self.uri.partition("://")[0] not in SCHEMES:
            return ""
        try:
            filesystem, path = self.remote(name)
            for asked in (path, path.partition("/")[0]):
                info = patiently(partial(filesystem.get_file_info, asked), self.where(name), even_away=False)
                if info.type != pafs.FileType.NotFound:
                    return ""
        except OSError as error:
            return str(error)
        return "there is no such bucket"

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


@lru_cache(maxsize=16)
def _bucket(process: int, scheme: str, name: str, store: ObjectStore) -> pafs.FileSystem:
    """One connection per process and bucket; it owns threads, and must not cross a fork."""
    assert process == os.getpid()
    return store.filesystem(scheme, name)


def _send(filesystem: pafs.FileSystem, path: str, content: pa.Buffer) -> None:
    pieces = [content[start : start + _SENT_BYTES] for start in range(0, content.size, _SENT_BYTES)]
    stream = filesystem.open_output_stream(path)
    try:
        for piece in pieces:
            stream.write(piece)
            stream.flush()
        stream.close()
    except OSError:
        with suppress(OSError):  # nothing is committed of an upload that failed
            stream.close()
        raise


def require_reachable(place: str) -> None:
    """Check that the bucket of a place exists and lets itself be asked; see `Folder.unreachable`.

    Raises:
        ConfigError: If it does not.
    """
    folder = Folder.at(place)
    if found := folder.unreachable():
        raise ConfigError(
            f"{place} at {folder.store.endpoint or 'AWS'}: {found}",
            expected="a bucket that you may list and read",
            remedy="check the name, --storage, and your credentials",
        )
