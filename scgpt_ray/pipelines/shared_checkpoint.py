"""A checkpoint where every worker can read it."""

import logging

from scgpt_ray.network.checkpoint_files import COMPONENTS_FILE, DEMO, CheckpointFiles
from scgpt_ray.pipelines.executor import Executor
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
"""Subfolder of an output folder to which a checkpoint on the driver's disk is copied for other machines."""


def share(files: CheckpointFiles, place: Folder, executor: Executor) -> CheckpointFiles:
    """Name a checkpoint as all workers can find it, by its content.

    A folder on the driver's disk, such as the cache, is copied to the output once if work runs on other machines, and
    components always: they belong to the embeddings, and are small.
    Workers check what they read there against the sums, and keep files of an object store on their machine.

    Args:
        files: The checkpoint, with the sums of its files.
        place: Folder to copy to, in the output folder.
        executor: Where the workers are.
    """
    is_found = executor.is_here or files.uri == DEMO or not files.folder.is_local
    if is_found and COMPONENTS_FILE not in dict(files.sha256):
        return files
    for name, _ in files.sha256:  # content is checked where it is read
        if place.size(name) != files.folder.size(name):
            logger.info("copying %s to %s, for all workers", files.folder.where(name), place.uri)
            place.write(name, files.read(name))
    return CheckpointFiles(place.uri, files.sha256)
