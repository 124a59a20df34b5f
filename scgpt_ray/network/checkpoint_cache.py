"""Checkpoints on this machine's disk: `$SCGPT_RAY_CACHE/NAME`, filled once, verified, and pinned.

    NAME/                   a published checkpoint: its files, and pinned.json
    hub/OWNER--REPO@COMMIT/ a folder of a hub, the same way; indexes of reference cells are there, too
    sha256/DIGEST           a file that a worker read from an object store

A file gets its name after it was verified, and pinned.json, which has every sum, comes last. Processes that need the
same checkpoint wait for one another at a lock file. Files that a person puts into a folder are taken as downloads are.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scgpt_ray.errors import CheckpointError
from scgpt_ray.network.download import (
    COMMIT,
    HubFolder,
    download,
    locate_file,
    megabytes,
    sha256_of,
    stored_file,
    transfer_errors,
)
from scgpt_ray.network.published import FILES, PUBLISHED, WEIGHTS, Known, Published
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

PINNED = "pinned.json"
Sums = dict[str, str]
"""File name -> SHA-256 (hex)."""


def cache_folder() -> Path:
    """The folder of all cached checkpoints."""
    own = os.environ.get("SCGPT_RAY_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "scgpt_ray"


def is_cached_name(name: str) -> bool:
    """Whether a checkpoint is read from the cache: a published name, or a folder of a hub."""
    return name in PUBLISHED or name.startswith("hf://")


def cached(name: str) -> tuple[Path, Sums]:
    """The folder of a checkpoint in the cache, downloaded if it is not there, and the sums of its files.

    Args:
        name: Name of a published checkpoint, or hf://owner/repo[@revision][/subfolder].

    Raises:
        CheckpointError: If it can neither be found nor downloaded, or is not what is known of it.
    """
    if name.startswith("hf://"):
        return cached_hub_folder(name, FILES[0], _checkpoint_files)
    folder = cache_folder() / name
    return folder, read_pinned(folder) or _fill(name, folder, PUBLISHED[name])


def read_pinned(folder: Path) -> Sums | None:
    """The sums of a folder's files; None if it is not complete."""
    try:
        files: Mapping[str, Any] = json.loads((folder / PINNED).read_bytes())["files"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder / PINNED} cannot be read ({error})", expected="what an earlier download wrote",
            remedy=f"delete {folder}",
        ) from error  # fmt: skip
    is_whole = all((folder / name).is_file() for name in files)
    return {name: pin["sha256"] for name, pin in files.items()} if is_whole else None


def cached_hub_folder(uri: str, first: str, names_of: Callable[[str, Path], Iterable[str]]) -> tuple[Path, Sums]:
    """A folder of a hub in the cache, and the sums of its files: if the revision is a branch or a tag, as it is now.

    Args:
        uri: hf://owner/repo[@revision][/subfolder].
        first: A file that the folder must have.
        names_of: Names of the files to download: names_of(source, folder in the cache, which need not exist).

    Raises:
        CheckpointError: If it can neither be found nor downloaded.
    """
    place = HubFolder.of(uri)
    subfolder = f"/{place.subfolder}" if place.subfolder else ""
    home = cache_folder() / "hub"
    repo, inside = place.repo.replace("/", "--"), quote(subfolder, safe="")
    commit, ref = place.revision, home / "refs" / f"{repo}@{quote(place.revision, safe='')}"
    if not COMMIT.fullmatch(commit):
        commit = _commit_of(uri, first, place, ref)
    folder = home / f"{repo}@{commit}{inside}"
    sums = read_pinned(folder)
    if sums is None:
        source = f"hf://{place.repo}@{commit}{subfolder}"
        files = dict.fromkeys(names_of(source, folder), Known())
        sums = _fill(uri, folder, Published("", place.page, (source,), files))
    if commit != place.revision:
        Folder.at(ref.parent).write(ref.name, commit.encode())
    return folder, sums


def _commit_of(uri: str, first: str, place: HubFolder, ref: Path) -> str:
    """The commit that a branch or tag names; that of the last download if the hub does not answer."""
    try:
        return locate_file(uri, first).commit
    except transfer_errors() as error:
        if not ref.is_file():
            raise _unavailable(uri, None, place.page, {uri: error}) from error
        commit = ref.read_text()
        logger.warning("%s cannot be asked (%s); commit %s of the cache is used", uri, _short(error), commit)
        return commit


def _checkpoint_files(source: str, folder: Path) -> tuple[str, ...]:
    """The files of a checkpoint; the weights have one of two names, in the cache or there."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return (*FILES, name)
    errors: dict[str, Exception] = {}
    for name in WEIGHTS:
        try:
            locate_file(source, name)
        except transfer_errors() as error:
            errors[f"{source}/{name}"] = error
        else:
            return (*FILES, name)
    raise _unavailable(source, None, HubFolder.of(source).page, errors)


def _fill(name: str, folder: Path, published: Published) -> Sums:
    """Verify and pin the files that are in a folder, and download what is not."""
    with _locked(folder, name):
        folder.mkdir(exist_ok=True)
        sums = read_pinned(folder)
        if sums is not None:  # another process was faster
            return sums
        missing = [file for file in published.files if not (folder / file).is_file()]
        source = _download_any(name, folder, published, missing) if missing else "files that were put here"
        pins = {file: _pin(folder / file, known) for file, known in published.files.items()}
        content = {"source": source, "files": pins}
        Folder.at(folder).write(PINNED, json.dumps(content, indent=1).encode())
    unknown = [file for file, known in published.files.items() if known.sha256 is None]
    if unknown:
        logger.info("%s: %s trusted, as no sha256 is known, and pinned in %s", name, " ".join(unknown), folder / PINNED)
    return {file: pin["sha256"] for file, pin in pins.items()}


def _pin(path: Path, known: Known) -> dict[str, Any]:
    """Sum and size of a file that is what it should be."""
    found = sha256_of(path)
    if known.sha256 not in (None, found):
        raise CheckpointError(
            f"{path} has the sha256 {found}", expected=str(known.sha256),
            remedy="delete the file; the next command downloads it again",
        )  # fmt: skip
    return {"sha256": found, "size": path.stat().st_size}


def _download_any(name: str, folder: Path, published: Published, missing: list[str]) -> str:
    """Download files from the first source that has all of them, as they should be; returns the source."""
    errors: dict[str, Exception] = {}
    refusals: tuple[type[Exception], ...] = (CheckpointError, *transfer_errors())
    for source in published.sources:
        try:
            _download_all(name, source, folder, {file: published.files[file] for file in missing})
        except refusals as error:
            errors[source] = error
            if source != published.sources[-1]:
                logger.warning("%s: %s (%s); trying the next source", name, source, _short(error))
        else:
            return source
    raise _unavailable(name, folder, published.page, errors)


def _download_all(name: str, source: str, folder: Path, files: Mapping[str, Known]) -> None:
    """Download files, and give them their names when all of them are verified."""
    parts = {}
    for file, known in files.items():
        remote = locate_file(source, file)
        size = "" if remote.size is None else f" ({megabytes(remote.size)})"
        logger.info("%s: downloading %s%s to %s", name, remote.where, size, folder)
        parts[file] = download(remote, folder / file, known)
    for file, part in parts.items():
        part.replace(folder / file)


def _unavailable(name: str, folder: Path | None, page: str, errors: Mapping[str, Exception]) -> CheckpointError:
    tried = "; ".join(f"{source}: {_short(error)}" for source, error in errors.items())
    files = f"{', '.join(FILES)} and {WEIGHTS[0]}"
    where = "give --checkpoint their folder" if folder is None else f"put them into {folder}"
    return CheckpointError(
        f"{name} is not in the cache and cannot be downloaded ({tried})",
        expected="a source that answers",
        remedy=f"or download {files} from {page} and {where}",
    )


def _short(error: Exception) -> str:
    """What went wrong, without the advice for programmers."""
    text = error.found if isinstance(error, CheckpointError) else str(error)
    if isinstance(error, CheckpointError):
        text += f", not {error.expected}"
    first, *more = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    # The hub's library says "404 Client Error." first, and in another line what was not found, and where.
    return " ".join(" ".join([first, *(line for line in more if " for url" in line)]).split())


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Keep other processes from what will be at a path of the cache.

    Raises:
        CheckpointError: If the cache cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("%s: waiting for another process that downloads it", name)
            lock.acquire()
    except OSError as error:
        raise CheckpointError(
            f"the cache {path.parent} cannot be written ({error.strerror or error})",
            expected="a writable folder",
            remedy="set SCGPT_RAY_CACHE to one",
        ) from error
    try:
        yield
    finally:
        lock.release()


def local_copy(place: Folder, name: str, sha256: str) -> Path:
    """A file of an object store on this machine's disk, copied at the first call on the machine.

    Args:
        place: Folder on an object store.
        name: Of the file.
        sha256: Of its content; names the copy.

    Raises:
        OSError: If it cannot be read.
        CheckpointError: If it has another content.
    """
    path = cache_folder() / "sha256" / sha256
    if not path.is_file():
        with _locked(path, place.where(name)):
            if not path.is_file():
                download(stored_file(place, name), path, Known(sha256)).replace(path)
    return path
