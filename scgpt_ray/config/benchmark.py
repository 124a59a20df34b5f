"""The options of `benchmark`."""

from typing import Annotated, Literal

from pydantic import Field

from scgpt_ray.config.settings import Count, Precision, Settings, Text


class BenchmarkSettings(Settings):
    """Options of `benchmark`."""

    verb = "benchmark"
    group = "Measurement"
    examples = (
        "scgpt-ray benchmark --stage tokens --cells 512 --seconds 1",
        "scgpt-ray benchmark --stage model --checkpoint demo --cells 64 --tokens 200 --seconds 1",
        "scgpt-ray benchmark --stage index --cells 5000",
    )

    stage: Literal["model", "tokens", "read", "flow", "index"] = "model"
    """What to measure. model: the network; tokens: the tokeniser; read: reading; flow: Ray against a plain loop; index:
    faiss."""
    device: Text = "cpu"
    """Device of the network: cpu, cuda or cuda:N."""
    precision: Precision = "auto"
    """Arithmetic of the network. auto: float16 on GPUs, float32 on CPUs."""
    attention: Literal["auto", "cells", "blocks", "triton", "varlen", "FA3", "FA4"] = "auto"
    """Attention kernel of the network. auto: the fastest one installed."""
    tokens: Annotated[str, Field(pattern=r"^([1-9]\d*|ragged)$")] | None = None
    """Tokens per cell: a number, or ragged (250 to 1,200, mean 600). Default: ragged; before sampling, 2000 for the
    stage tokens and 2100 for read."""
    cells: Count | None = None
    """Number of cells, or of vectors for the stage index. Default: enough for a few seconds of work."""
    lengths_from: Text | None = None
    """An .h5ad file with the cells whose lengths the stage model uses. Default: --tokens."""
    checkpoint: Text | None = None
    """Checkpoint: a name, a folder or hf://..., as for `embed`. Default: random weights of the size of whole-human."""
    against: Literal["naive"] | None = None
    """naive: also measure a baseline. Stages model and tokens: padded batches and cell-by-cell tokens in plain torch;
    index: scGPT's own index (PCA64,IVF16384_HNSW32,PQ16 without re-ranking). Default: none."""
    readers: Annotated[int, Field(ge=2)] | None = None
    """Number of reader processes that the stage read compares with a single one. Default: one process only."""
    embeddings_from: Text | None = None
    """Output folder of `embed`; the stage index synthesises more vectors like its embeddings. Default: synthetic
    vectors (100 clusters, intrinsic dimension 24)."""
    threads: Count | None = None
    """Number of CPU threads. Default: that of torch; 1 for the stage index."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds per measurement; for the stage flow, per partition. Default: 10; 0.5 for flow."""
