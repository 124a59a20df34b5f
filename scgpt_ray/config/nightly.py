"""The options of `nightly`."""

from scgpt_ray.config.embed import EmbedSettings
from scgpt_ray.config.gate import DriftSettings
from scgpt_ray.config.settings import Count, Text, Texts


class NightlySettings(EmbedSettings, DriftSettings):
    """Options of `nightly`: those of `embed`, and what is made of the embeddings."""

    verb = "nightly"
    group = "Input and output"
    examples = (
        "scgpt-ray nightly --atlas demo/atlas --checkpoint demo --output nights --obs-columns cell_type split",
        "scgpt-ray nightly --atlas demo/atlas --checkpoint demo --output gated-nights --obs-columns cell_type --gate",
        "scgpt-ray nightly --atlas demo/atlas --checkpoint demo --output short-nights --max-length 64 --keep 1",
    )

    output: Text
    """Folder of the runs, run-00001/ and so on, and of index/, which names the run that it holds; a path or s3:// URI.
    The same options are used every night."""
    gate: bool = False
    """Compare refreshed embeddings with those before, as `refresh --gate` does. If they have drifted, the index stays
    as it was, and the exit code is 4."""
    label_columns: Texts = ()
    """obs columns to store with the index. Default: all that the embeddings carry, but observation_joinid."""
    keep: Count = 2
    """Number of runs to keep, the one in the index among them; older ones are deleted."""
