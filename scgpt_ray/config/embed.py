"""What `embed` is asked."""

from typing import Annotated, Literal

from pydantic import Field

from scgpt_ray.config.cells import CellSettings, ComputeSettings
from scgpt_ray.config.settings import Text


class EmbedSettings(CellSettings, ComputeSettings):
    """Embed every cell of an atlas with scGPT; Parquet parts, resumable."""

    verb = "embed"

    atlas: Text
    """Where the cells are: a SOMA experiment (path or s3:// URI), an .h5ad file, or census:VERSION (human)."""
    checkpoint: Text
    """Checkpoint folder: args.json, vocab.json, and best_model.pt or model.safetensors; or demo, a small one for blood
    that ships with the package."""
    output: Text
    """Folder for plan.json, genes.parquet, parts/ and manifest.json; a path or s3:// URI."""
    max_length: Annotated[int, Field(ge=2)] = 1200
    """Most tokens per cell, <cls> included; longer cells are sampled."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of ties and sampling."""
    ties: Literal["random", "top"] = "random"
    """Which bin equal counts get: a draw from the bins they span (as upstream embeds), or the top one (as upstream
    pretrains)."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the network; embeddings are stored as float32 either way. auto: float16 on GPUs, float32 on CPUs,
    and that of the first run into an output folder."""
