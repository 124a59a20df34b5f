"""The options of `refresh`."""

from typing import Self

from pydantic import model_validator

from scgpt_ray.config.cells import ComputeSettings
from scgpt_ray.config.embed import FailureSettings
from scgpt_ray.config.execution import TrackingSettings
from scgpt_ray.config.gate import DriftSettings
from scgpt_ray.config.settings import Text, Timestamp


class RefreshSettings(FailureSettings, ComputeSettings, DriftSettings, TrackingSettings):
    """Options of `refresh`."""

    verb = "refresh"
    group = "Input and output"
    examples = (
        "scgpt-ray refresh --embeddings demo/reference --output refreshed",
        "scgpt-ray refresh --embeddings demo/reference --atlas demo/atlas --output refreshed-again",
        "scgpt-ray refresh --embeddings demo/reference --output all-anew --full-refresh --gate --verified-cells 10",
    )

    embeddings: Text
    """Output folder of a finished `embed` or `refresh`, whose options are used again."""
    output: Text
    """New folder, as that of `embed`, with changes.json; a path or s3:// URI. --embeddings stays as it is."""
    atlas: Text | None = None
    """The atlas as it is now, such as another release. Default: the one that was embedded, at its last write."""
    checkpoint: Text | None = None
    """Place of the checkpoint, which must have the same weights. Default: as given to `embed`."""
    snapshot: Timestamp | None = None
    """SOMA timestamp to read at, in ms since 1970; not for .h5ad files. Default: the last write."""
    full_refresh: bool = False
    """Embed every cell, also those whose counts have not changed."""
    index: Text | None = None
    """Index of --embeddings, which is brought up to date in its place without training: shards are added for new and
    changed cells, and cells that are gone or changed are left out of the others. Default: none."""
    index_output: Text | None = None
    """Folder for a new index of all cells with the template of --index, which then stays as it is. Default: none."""

    gate: bool = False
    """Compare the refreshed embeddings with the earlier ones before an index is made of them, as `scgpt-ray gate` does,
    into gate/ of the output. If they have drifted, no index is made, and the exit code is 4."""

    @model_validator(mode="after")
    def _new_places(self) -> Self:
        if self.index is None and self.index_output is not None:
            raise ValueError("--index-output needs --index")
        if self.output == self.embeddings or (self.index is not None and self.index == self.index_output):
            raise ValueError("the output must be another folder than the input")
        return self
