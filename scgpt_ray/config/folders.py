"""What the verbs are asked that look at folders there are, or make a demonstration one."""

from typing import Literal, Self

from pydantic import model_validator

from scgpt_ray.config.execution import ExecutionSettings
from scgpt_ray.config.settings import Settings, Text


class ValidateSettings(Settings):
    """Audit an output folder: every planned cell once, finite, unit norm, one fingerprint."""

    verb = "validate"

    embeddings: Text | None = None
    """Output folder of `embed`."""
    index: Text | None = None
    """Output folder of `index`."""

    @model_validator(mode="after")
    def _one_folder(self) -> Self:
        if (self.embeddings is None) == (self.index is None):
            raise ValueError("give one of --embeddings and --index")
        return self


class ExportSettings(Settings):
    """Write embeddings into a file other tools open."""

    verb = "export"

    embeddings: Text
    """Output folder of a finished `embed`."""
    to: Literal["h5ad"] = "h5ad"
    """Format: h5ad has obsm["X_scGPT"] and the carried obs columns."""
    output: Text
    """File to write."""


class DemoSettings(ExecutionSettings):
    """Run the whole chain on 700 real blood cells: atlas, embeddings, index, labels, picture."""

    verb = "demo"

    output: Text = "demo"
    """Folder to write everything to."""
    checkpoint: Text = "demo"
    """Checkpoint folder, or demo: a small one that ships with the package, trained on other blood cells."""
