"""The options of `embed`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scgpt_ray.config.cells import CellSettings, ComputeSettings, DeviceSettings
from scgpt_ray.config.execution import TrackingSettings
from scgpt_ray.config.settings import Count, Fraction, LongSeed, Precision, Settings, Text


class TokenSettings(Settings):
    """Tokenisation and arithmetic."""

    group = "Tokens and network"

    max_length: Annotated[int, Field(ge=2)] = 1200
    """Most tokens per cell, including <cls>; longer cells are sampled."""
    seed: LongSeed = 0
    """Random seed of ties and sampling."""
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of seeds over which the embedding of a cell is averaged, 1 to 64, which takes as many times longer; cells
    that are not sampled and have no ties are embedded once."""
    ties: Literal["random", "top"] = "random"
    """Bin of equal counts. random: drawn from the bins they span, as scGPT embeds; top: the highest of them, as scGPT
    pretrains."""
    pooling: Literal["cls", "mean"] = "cls"
    """What becomes the embedding of a cell. cls: the row of <cls>, as scGPT embeds; mean: the mean of the rows of its
    genes, which takes longer."""
    precision: Precision = "auto"
    """Arithmetic of the network; embeddings are stored as float32 either way. auto: float16 on GPUs, float32 on CPUs,
    or that of the first run into an output folder."""


class VariableGeneSettings(Settings):
    """Which genes become tokens."""

    group = "Highly variable genes"

    highly_variable: Count | None = None
    """Embed only so many highly variable genes, as scanpy ranks them over the selected cells, all of which are read
    into memory for it. Default: all genes."""
    flavor: Literal["seurat_v3", "seurat"] = "seurat_v3"
    """How genes are ranked. seurat_v3: by the variance of standardised values; seurat: by normalised dispersion."""
    rank_by: Literal["stored", "log1p"] = "stored"
    """Values by which genes are ranked. stored: as they stand in the layer; log1p: scaled to 10,000 per cell, then
    log(1 + x)."""

    @model_validator(mode="after")
    def _ranked_for_something(self) -> Self:
        if self.highly_variable is None and (self.flavor, self.rank_by) != ("seurat_v3", "stored"):
            raise ValueError("--flavor and --rank-by need --highly-variable")
        return self


class FailureSettings(Settings):
    """What may fail."""

    group = "Compute"

    max_failed: Fraction = 0.001
    """Largest fraction of the cells that may fail, 0 to 1. Cells whose bytes are damaged, or that kill their worker,
    are listed in quarantine.json and the rest is finished (exit code 3). The cells of one partition may always fail,
    but for 0."""


class RequestSettings(TokenSettings, VariableGeneSettings, CellSettings, DeviceSettings):
    """What is embedded, and with what."""

    group = "Input and output"

    atlas: Text
    """Cells to embed: a SOMA experiment or .h5ad file (path or s3:// URI), or census:RELEASE[/ORGANISM]."""
    checkpoint: Text
    """Checkpoint: whole-human or another name that `scgpt-ray checkpoints` lists, downloaded when it is first used; a
    folder (path or s3:// URI) with args.json, vocab.json, and best_model.pt or model.safetensors; or
    hf://owner/repo[@revision][/subfolder]. demo: the small network for blood that ships with the package. pca or pca:N:
    no network, but N (50) principal components of 2,000 highly variable genes of these cells, fitted once and kept in
    checkpoint/ of the output."""
    output: Text
    """Folder for plan.json, genes.parquet, parts/, report.html and manifest.json; a path or s3:// URI."""


class EmbedSettings(RequestSettings, ComputeSettings, FailureSettings, TrackingSettings):
    """Options of `embed`."""

    verb = "embed"
    group = "Input and output"
    examples = (
        "scgpt-ray embed --atlas demo/atlas --checkpoint demo --output blood --obs-columns cell_type split",
        "scgpt-ray embed --atlas demo/atlas --checkpoint demo --output b-cells --obs-filter \"cell_type == 'CD19+ B'\"",
        "scgpt-ray embed --atlas demo/atlas --checkpoint demo --output short --max-length 64 --seed 1",
    )
