"""Files of a hub or a bucket, copied to a local disk: a killed download is resumed where it ended."""

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from scgpt_ray.errors import CheckpointError
from scgpt_ray.network.published import Known
from scgpt_ray.object_store import current
from scgpt_ray.progress import Stage
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<subfolder>.+))?")
COMMIT = re.compile("[0-9a-f]{40}")
_CHUNK = 2**22
_TAG = 16


@dataclass(frozen=True)
class HubFolder:
    """A folder of a repository of the Hugging Face Hub.

    Attributes:
        repo: owner/name.
        revision: Branch, tag or commit.
        subfolder: Path in the repository; empty for its root.
    """

    repo: str
    revision: str
    subfolder: str

    @classmethod
    def of(cls, uri: str) -> "HubFolder":
        """Read hf://owner/repo[@revision][/subfolder]; a slash in a revision is written %2F.

        Raises:
            CheckpointError: If it is not such a URI.
        """
        match = _HUB.fullmatch(uri.rstrip("/"))
        if match is None:
            raise CheckpointError(
                f"{uri} names no repository",
                expected="hf://owner/repo[@revision][/subfolder]",
                remedy="write a slash in a revision as %2F",
            )
        return cls(match["repo"], unquote(match["revision"] or "main"), match["subfolder"] or "")

    @property
    def page(self) -> str:
        """Where people see the files."""
        return f"https://huggingface.co/{self.repo}/tree/{self.revision}/{self.subfolder}".rstrip("/")


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded.

    Attributes:
        where: URL or URI, for messages.
        tag: Another for another content.
        size: Bytes, if the source says so.
        sha256: Of the content, if the source says so.
        commit: Of the repository; empty for a bucket.
        append: Writes what follows after so many bytes to a stream: append(stream, n_bytes).
    """

    where: str
    tag: str
    size: int | None
    sha256: str | None
    commit: str
    append: Callable[[BinaryIO, int], None]


def transfer_errors() -> tuple[type[Exception], ...]:
    """What a download raises for a source that cannot be reached, lacks a file, or breaks off."""
    import httpx2

    return (OSError, pa.ArrowException, httpx2.HTTPError)


def locate_file(source: str, name: str) -> RemoteFile:
    """Look up a file at a source: hf://owner/repo[@revision][/subfolder], a public s3:// folder, or another URI.

    Raises:
        OSError: If it is not there; or another of `transfer_errors` if the source cannot be reached.
    """
    if source.startswith("hf://"):
        return _on_hub(HubFolder.of(source), name)
    place = Folder(source, current().public())
    if found := place.unreachable(name):
        raise OSError(f"{place.where(name)}: {found}")
    return stored_file(place, name)


def _on_hub(folder: HubFolder, name: str) -> RemoteFile:
    # Imported on need: most checkpoints are on a disk.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # the stage counts

    # The library reads HF_ENDPOINT when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    place = {"subfolder": folder.subfolder or None, "revision": folder.revision, "endpoint": endpoint}
    url = hf_hub_url(folder.repo, name, **place)
    found = get_hf_file_metadata(url, endpoint=endpoint, retry_on_errors=False)
    commit = found.commit_hash or ""
    if found.etag is None or not COMMIT.fullmatch(commit):  # it names a folder of the cache
        raise OSError(f"{url} is not answered by a Hugging Face Hub")
    # A token is for the hub, not for the store that it redirects to.
    is_redirected = urlsplit(found.location).netloc != urlsplit(url).netloc
    headers = build_hf_headers(token=False if is_redirected else None)

    def append(stream: BinaryIO, n_bytes: int) -> None:
        http_get(
            found.location,
            stream,
            resume_size=n_bytes,
            headers=headers,
            expected_size=found.size,
            displayed_filename=name,
        )

    # The hub names large files by their SHA-256, small ones by git's SHA-1.
    sha256 = found.etag if re.fullmatch("[0-9a-f]{64}", found.etag) else None
    return RemoteFile(url, found.etag, found.size, sha256, commit, append)


def stored_file(place: Folder, name: str) -> RemoteFile:
    """A file of a folder on an object store.

    Raises:
        FileNotFoundError: If it is not there; or another OSError if the store cannot be reached.
    """
    where, size = place.where(name), place.size(name)
    if size is None:
        raise FileNotFoundError(f"{where} does not exist")

    def append(stream: BinaryIO, n_bytes: int) -> None:
        with place.open(name) as source:
            source.seek(n_bytes)
            while chunk := source.read(_CHUNK):
                stream.write(chunk)

    return RemoteFile(where, f"{where} {size}", size, None, "", append)


def download(file: RemoteFile, target: Path, known: Known) -> Path:
    """Download a file for a place on the disk, and verify it.

    Args:
        file: What to download.
        target: Where it will be; its folder exists.
        known: What its content must be.

    Returns:
        Path of the verified file, which is next to `target` until the caller renames it.

    Raises:
        CheckpointError: If size or sum are not what is known, or what the source says.
    """
    part = target.with_name(f".{target.name}.{hashlib.sha256(file.tag.encode()).hexdigest()[:_TAG]}.part")
    with part.open("ab") as stream:
        n_bytes = stream.tell()
        if n_bytes:
            logger.info("%s: resumed after %s", file.where, megabytes(n_bytes))
        try:
            with Stage(f"download {target.name}", file.size, done=n_bytes, unit="bytes") as stage:
                file.append(cast("BinaryIO", _Counted(stream, stage)), n_bytes)
        except transfer_errors() as error:
            from huggingface_hub.errors import HfHubHTTPError

            if n_bytes and isinstance(error, HfHubHTTPError):  # the server refuses to go on from there
                part.unlink()
            raise
        stream.flush()
        os.fsync(stream.fileno())
    size, found = part.stat().st_size, sha256_of(part)
    for expected in (known, Known(file.sha256, file.size)):
        if expected.size not in (None, size):
            part.unlink()
            raise _wrong(file, f"{size:,} bytes", f"{expected.size:,} bytes")
        if expected.sha256 not in (None, found):
            part.unlink()
            raise _wrong(file, f"the sha256 {found}", str(expected.sha256))
    return part


class _Counted:
    """A file that is written, whose bytes a stage counts."""

    def __init__(self, stream: BinaryIO, stage: Stage) -> None:
        self._stream, self._stage = stream, stage

    def write(self, chunk: bytes) -> int:
        self._stage.advance(len(chunk))
        return self._stream.write(chunk)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _wrong(file: RemoteFile, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{file.where} has {found}", expected=expected, remedy="use another source")


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def megabytes(n_bytes: int) -> str:
    """A size for people."""
    return f"{n_bytes / 1e6:,.1f} MB"
