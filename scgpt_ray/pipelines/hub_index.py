"""An index that others published on a hub (hf://...), in the cache of this machine and where workers can read it."""

import io
import logging
import shutil
from pathlib import Path

from scgpt_ray.errors import CheckpointError, ReferenceSetError
from scgpt_ray.identity import digest_of
from scgpt_ray.index.description import CENTRE, MARKERS, RECALL, require_index
from scgpt_ray.network.checkpoint_cache import cached_hub_folder
from scgpt_ray.network.download import locate_file, transfer_errors
from scgpt_ray.pipelines.executor import Executor
from scgpt_ray.records import Fitness, IndexDescription
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

INDEX_COPY = "index"
"""Subfolder of an output folder to which an index in the driver's cache is copied for other machines."""


def is_on_hub(place: str) -> bool:
    """Whether an index is on a hub."""
    return place.startswith("hf://")


def cached_index(uri: str) -> Folder:
    """The folder of an index in the cache, downloaded if it is not there.

    Args:
        uri: hf://owner/repo[@revision][/subfolder].

    Raises:
        ReferenceSetError: If it is no index, or can neither be found nor downloaded.
    """
    try:
        folder, _ = cached_hub_folder(uri, IndexDescription.file, _files)
    except CheckpointError as error:
        raise ReferenceSetError(
            error.found, expected=error.expected, remedy="or download it, and give --index the folder"
        ) from error
    return Folder.at(folder)


def _files(source: str, folder: Path) -> list[str]:
    """The files of an index that a mapping reads, as its description names them."""
    name = IndexDescription.file
    content = io.BytesIO()
    try:
        if (folder / name).is_file():
            content.write((folder / name).read_bytes())
        else:
            locate_file(source, name).append(content, 0)
    except transfer_errors() as error:
        raise CheckpointError(
            f"{source}/{name} cannot be read ({' '.join(str(error).split())})", expected="an index", remedy=""
        ) from error
    return _names(IndexDescription.from_json(content.getvalue(), f"{source}/{name}"))


def _names(index: IndexDescription) -> list[str]:
    of_shards = [name for shard in index.shards for name in (*shard.files, shard.marker)]
    return [IndexDescription.file, Fitness.file, CENTRE, RECALL, MARKERS, *of_shards]


def share_index(folder: Folder, place: Folder, executor: Executor) -> Folder:
    """Where all workers can read an index of the cache: there, or a copy if work runs on other machines.

    Args:
        folder: In the cache; its name has the commit.
        place: Folder in the output folder to copy to.
        executor: Where the workers are.
    """
    if executor.is_here:
        return folder
    copy = place.folder(digest_of(folder.path.name)[:12])
    for name in _names(require_index(folder)):
        if copy.size(name) != folder.size(name):
            logger.info("copying %s to %s, for all workers", folder.where(name), copy.uri)
            with copy.staged(name) as path:
                shutil.copyfile(folder.path / name, path)
    return copy
