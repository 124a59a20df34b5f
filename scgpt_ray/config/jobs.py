"""The options of `status` and `prune`."""

from scgpt_ray.config.settings import Text
from scgpt_ray.config.storage import StorageSettings


class StatusSettings(StorageSettings):
    """Options of `status`."""

    verb = "status"
    group = "Input"
    bare = "folder"
    examples = (
        "scgpt-ray status demo/reference",
        "scgpt-ray status demo/index",
        "scgpt-ray status --folder demo/mapped",
    )

    folder: Text
    """Output folder of a running or finished command; a path or s3:// URI. It may be given without --folder."""


class PruneSettings(StorageSettings):
    """Options of `prune`."""

    verb = "prune"
    group = "Input"
    bare = "folder"
    examples = (
        "scgpt-ray prune demo/reference --dry-run",
        "scgpt-ray prune demo/index",
        "scgpt-ray prune --folder demo/mapped/embeddings",
    )

    folder: Text
    """Output folder of embed, refresh or index; a path or s3:// URI. It may be given without --folder."""
    dry_run: bool = False
    """Only list what would be removed."""
