"""The options of `submit`, `status` and `prune`."""

from scgpt_ray.config.execution import StorageSettings
from scgpt_ray.config.settings import Settings, Text


class SubmitSettings(Settings):
    """Options of `submit`."""

    verb = "submit"
    group = "Job"
    bare = "recipe"
    examples = (
        "scgpt-ray submit jobs/configs/embed.yaml",
        "scgpt-ray submit jobs/configs/embed.yaml --address http://HEAD:8265",
        "scgpt-ray submit --recipe s3://my-bucket/recipes/embed.yaml --detach",
    )

    recipe: Text
    """YAML file of the options of a verb, with the line `verb: NAME`; a path or s3:// URI. It may be given without
    --recipe."""
    address: Text | None = None
    """URL of the job server of a Ray cluster. Default: $RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265."""
    detach: bool = False
    """Do not wait for the end of the job."""


class StatusSettings(StorageSettings):
    """Options of `status`."""

    verb = "status"
    group = "Input"
    bare = "folder"
    examples = (
        "scgpt-ray status demo/reference",
        "scgpt-ray status demo/index",
        "scgpt-ray status --folder demo/mapped/embeddings",
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
