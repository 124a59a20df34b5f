"""The checkpoints that have names: what is known of them, and which are on this machine."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scgpt_ray.config import CheckpointsSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.network.checkpoint_cache import cache_folder, cached, read_pinned
from scgpt_ray.network.checkpoint_files import DEMO, CheckpointFiles
from scgpt_ray.network.download import megabytes
from scgpt_ray.network.published import LICENCE, PUBLISHED, Published

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedCheckpoint:
    """A line of the list.

    Attributes:
        name: What --checkpoint takes.
        summary: What it was trained on.
        licence: Of the weights.
        folder: Where it is on this machine, or would be.
        is_cached: Whether it is there.
        size: Bytes of all files; None if unknown.
        sha256: File name -> sum, or None if it is unknown: of the files that are there, else of those expected.
        sources: Where it is downloaded from, in order.
        page: Where people download it.
    """

    name: str
    summary: str
    licence: str
    folder: str
    is_cached: bool
    size: int | None
    sha256: Mapping[str, str | None]
    sources: tuple[str, ...]
    page: str


@dataclass(frozen=True)
class CheckpointList:
    """The checkpoints, and the folder of the cache."""

    cache: str
    checkpoints: tuple[NamedCheckpoint, ...]

    def text(self) -> str:
        """A paragraph for each checkpoint."""
        return "\n".join([*map(_paragraph, self.checkpoints), f"cache  {self.cache}"])

    def to_dict(self) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self)


def checkpoints(settings: CheckpointsSettings) -> CheckpointList:
    """List checkpoints, and download them if that is asked for.

    Raises:
        ConfigError: If a name is unknown.
        CheckpointError: If a checkpoint cannot be downloaded.
    """
    known = (*PUBLISHED, DEMO)
    for name in settings.names:
        if name not in known:
            raise ConfigError(
                f"--names {name}", expected=f"one of {', '.join(known)}", remedy="see scgpt-ray checkpoints"
            )
    names = settings.names or known
    if settings.download:
        for name in names:
            if name != DEMO:
                logger.info("%s is in %s", name, cached(name)[0])
    return CheckpointList(str(cache_folder()), tuple(map(_describe, names)))


def _describe(name: str) -> NamedCheckpoint:
    if name == DEMO:
        return _shipped()
    published, folder = PUBLISHED[name], cache_folder() / name
    pinned = read_pinned(folder)
    sums: Mapping[str, str | None] = pinned or {file: known.sha256 for file, known in published.files.items()}
    size = sum((folder / file).stat().st_size for file in pinned) if pinned else _expected_size(published)
    return NamedCheckpoint(
        name, published.summary, LICENCE, str(folder), pinned is not None, size, dict(sums),
        published.sources, published.page,
    )  # fmt: skip


def _expected_size(published: Published) -> int | None:
    sizes = [known.size for known in published.files.values()]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _shipped() -> NamedCheckpoint:
    folder = CheckpointFiles.at(DEMO).folder
    files = [name for name in folder.names() if not name.endswith(".md")]
    size = sum(folder.size(name) or 0 for name in files)
    summary = "20,271 blood cells; small, for trying the package out"
    return NamedCheckpoint(
        DEMO, summary, "MIT, as the package", folder.uri, True, size, dict.fromkeys(files), ("the package",), ""
    )


def _paragraph(each: NamedCheckpoint) -> str:
    size = "size unknown" if each.size is None else megabytes(each.size)
    n_known = sum(digest is not None for digest in each.sha256.values())
    where = f"in {each.folder}" if each.is_cached else "not in the cache"
    lines = [f"{each.name}  {each.summary}", f"{size}, {where}", f"licence  {each.licence}"]
    lines += [f"from  {source}" for source in each.sources if each.name != DEMO]
    if each.name != DEMO:
        lines += [f"by hand  {each.page}", f"sha256 known of {n_known} of {len(each.sha256)} files"]
    return "\n    ".join(lines)
