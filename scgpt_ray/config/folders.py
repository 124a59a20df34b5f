"""The options of `validate`, `checkpoints` and `demo`."""

from typing import Self

from pydantic import model_validator

from scgpt_ray.config.execution import ExecutionSettings
from scgpt_ray.config.settings import Text, Texts
from scgpt_ray.config.storage import StorageSettings


class ValidateSettings(StorageSettings):
    """Options of `validate`."""

    verb = "validate"
    group = "Input"
    examples = (
        "scgpt-ray validate --embeddings demo/reference",
        "scgpt-ray validate --embeddings demo/mapped/embeddings",
        "scgpt-ray validate --index demo/index",
    )

    embeddings: Text | None = None
    """Output folder of `embed`. Default: none; give this or --index."""
    index: Text | None = None
    """Output folder of `index`. Default: none."""

    @model_validator(mode="after")
    def _one_folder(self) -> Self:
        if (self.embeddings is None) == (self.index is None):
            raise ValueError("give one of --embeddings and --index")
        return self


class CheckpointsSettings(StorageSettings):
    """Options of `checkpoints`."""

    verb = "checkpoints"
    group = "Checkpoints"
    examples = (
        "scgpt-ray checkpoints",
        "scgpt-ray checkpoints --names whole-human scGPT_CP",
        "scgpt-ray checkpoints --names demo --download",
    )

    names: Texts = ()
    """Names to list. Default: all."""
    download: bool = False
    """Download those that are not in the cache ($SCGPT_RAY_CACHE, or ~/.cache/scgpt_ray), for later use without a
    network."""


class DemoSettings(ExecutionSettings):
    """Options of `demo`."""

    verb = "demo"
    group = "Input and output"
    examples = (
        "scgpt-ray demo",
        "scgpt-ray demo --output blood-demo",
        "scgpt-ray demo --checkpoint demo/untrained/checkpoint --output untrained-demo",
    )

    output: Text = "demo"
    """Local folder for all output."""
    checkpoint: Text = "demo"
    """Checkpoint, as for `embed`. demo: the small network for blood that ships with the package."""
