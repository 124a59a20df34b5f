"""Removes from an output folder what its plan, manifest or index does not name."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scgpt_ray.config import PruneSettings
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.lease import hold, in_use, lease_of
from scgpt_ray.parts.earlier import TABLE
from scgpt_ray.parts.parts import PARTS, read_footer
from scgpt_ray.pipelines.shared_checkpoint import CHECKPOINT
from scgpt_ray.records import IndexDescription, Manifest, Plan
from scgpt_ray.storage import Folder

_SHARD_FILE = re.compile(r"(shard|ids|vectors|labels|removed)-\d+(-\w+)?\.\w+")


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be.

    Attributes:
        files: File name, relative to the folder -> size in bytes.
        is_done: Whether they were removed.
    """

    files: dict[str, int]
    is_done: bool

    def text(self) -> str:
        """A line per file, and the sum."""
        done = "removed" if self.is_done else "to remove"
        lines = [f"{size:>12} {name}" for name, size in self.files.items()]
        return "\n".join([*lines, f"{done}: {len(self.files)} files, {sum(self.files.values())} bytes"])

    def to_dict(self) -> dict[str, Any]:
        """The same for programs."""
        return {"removed": self.is_done, "files": self.files, "bytes": sum(self.files.values())}


def prune(settings: PruneSettings) -> Pruned:
    """Remove what killed or changed runs left behind.

    A finished folder keeps the files that its manifest or index names. An unfinished one keeps all committed parts of
    its plan, with which the same command resumes. Files of other names are not touched.

    Raises:
        ReferenceSetError: If the folder is not that of embed, refresh or index.
        OutputError: If a run writes into it.
    """
    folder = Folder.at(settings.folder)
    if not (folder.has(Plan.file) or folder.has(IndexDescription.file)):
        raise ReferenceSetError(
            f"{folder.uri} holds no {Plan.file} or {IndexDescription.file}",
            expected="the output folder of embed, refresh or index",
            remedy="check the path",
        )
    if settings.dry_run:
        there = lease_of(folder)
        if there is not None and there.is_alive():
            raise in_use(folder, there)
        return Pruned(_sizes(folder, [*_temporary(folder), *_unnamed(folder)]), is_done=False)
    temporary = _sizes(folder, _temporary(folder))
    with hold(folder, settings.verb):  # which removes temporary files
        unnamed = _sizes(folder, _unnamed(folder))
        for name in unnamed:
            folder.remove(name)
    return Pruned({**temporary, **unnamed}, is_done=True)


def _sizes(folder: Folder, names: list[str]) -> dict[str, int]:
    return {name: size for name in names if (size := folder.size(name)) is not None}


def _temporary(folder: Folder) -> list[str]:
    """Files that were not finished. Object stores have none; unfinished uploads are for the bucket's rules."""
    found = folder.path.rglob(".*.tmp") if folder.is_local else ()
    return sorted(str(path.relative_to(folder.path)) for path in found)


def _unnamed(folder: Folder) -> list[str]:
    plan, index = Plan.read(folder), IndexDescription.read(folder)
    return [*(_unnamed_by_plan(folder, plan) if plan else ()), *(_unnamed_by_index(folder, index) if index else ())]


def _unnamed_by_plan(folder: Folder, plan: Plan) -> Iterator[str]:
    """Parts of other plans and torn ones; of a finished run also what only its workers needed."""
    manifest, parts = Manifest.read(folder), folder.folder(PARTS)
    for name in parts.names():
        if name.startswith("part-") and not (name in manifest.parts if manifest else _is_of(plan, parts, name)):
            yield f"{PARTS}/{name}"
    if manifest is not None:
        yield TABLE
        yield from (f"{CHECKPOINT}/{name}" for name in folder.folder(CHECKPOINT).names())


def _is_of(plan: Plan, parts: Folder, name: str) -> bool:
    part = read_footer(parts, name)
    return part is not None and part.fingerprint == plan.fingerprint.digest and part.partition < len(plan.partitions)


def _unnamed_by_index(folder: Folder, index: IndexDescription) -> Iterator[str]:
    """Files of shards that the index does not have."""
    named = {name for shard in index.shards for name in (*shard.files, shard.marker)}
    yield from (name for name in folder.names() if _SHARD_FILE.fullmatch(name) and name not in named)
