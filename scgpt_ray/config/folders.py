"""The options of `validate`, `verify`, `checkpoints` and `demo`."""

from typing import Self

from pydantic import model_validator

from scgpt_ray.config.execution import ExecutionSettings, StorageSettings, TrackingSettings, WaitSettings
from scgpt_ray.config.settings import Count, LongSeed, Text, Texts


class ValidateSettings(ExecutionSettings, WaitSettings):
    """Options of `validate`."""

    verb = "validate"
    group = "Input"
    examples = (
        "scgpt-ray validate --embeddings demo/reference",
        "scgpt-ray validate --embeddings demo/mapped/embeddings --repair",
        "scgpt-ray validate --index demo/index",
    )

    embeddings: Text | None = None
    """Output folder of `embed`. Default: none; give this or --index."""
    index: Text | None = None
    """Output folder of `index`. Default: none."""
    repair: bool = False
    """Delete damaged files and make them again, from the request that the folder holds."""

    @model_validator(mode="after")
    def _one_folder(self) -> Self:
        if (self.embeddings is None) == (self.index is None):
            raise ValueError("give one of --embeddings and --index")
        return self


class VerifySettings(StorageSettings):
    """Options of `verify`."""

    verb = "verify"
    group = "Input"
    examples = (
        "scgpt-ray verify --embeddings demo/reference --sample 100",
        "scgpt-ray verify --embeddings demo/mapped/embeddings --sample 50 --seed 1",
        "scgpt-ray verify --embeddings demo/reference --atlas demo/atlas --checkpoint demo --sample 20",
    )

    embeddings: Text
    """Output folder of a finished `embed`."""
    sample: Count = 500
    """Number of cells to embed again; all, if there are fewer."""
    seed: LongSeed = 0
    """Random seed of the sample."""
    atlas: Text | None = None
    """The atlas that was embedded, or a copy of it. Default: where it was."""
    checkpoint: Text | None = None
    """The checkpoint that it was embedded with. Default: where it was."""


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


class DemoSettings(TrackingSettings, ExecutionSettings):
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
