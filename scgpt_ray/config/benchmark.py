"""What `benchmark` is asked."""

from typing import Annotated, Literal

from pydantic import Field

from scgpt_ray.config.settings import Count, Settings, Text


class BenchmarkSettings(Settings):
    """Measure a stage on this machine: cells/s and what it is made of, as a table and as JSON lines."""

    verb = "benchmark"

    stage: Literal["model", "tokens", "read", "flow", "index"] = "model"
    """What to measure: the network, the tokeniser, reading, Ray against a plain loop, or faiss."""
    device: Text = "cpu"
    """Where the network computes: cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the network; auto is float16 on CUDA and float32 on a CPU."""
    attention: Literal["auto", "cells", "blocks", "triton", "varlen", "FA3", "FA4"] = "auto"
    """The network's way to attend; auto takes the fastest that is installed."""
    tokens: Annotated[str, Field(pattern=r"^([1-9]\d*|ragged)$")] | None = None
    """Tokens of a cell: a number, or ragged (250 to 1,200, 600 on average). Default: ragged; 2000 for the stage tokens
    and 2100 for read, before sampling."""
    cells: Count | None = None
    """Cells to measure with; vectors for the stage index. Default: what takes seconds."""
    lengths_from: Text | None = None
    """An .h5ad file whose cells give the stage model its lengths, in place of --tokens."""
    checkpoint: Text | None = None
    """Checkpoint folder. Default: random weights of whole-human's size."""
    against: Literal["naive"] | None = None
    """naive: measure also what people do today. Stages model and tokens: the padded, cell-by-cell way in plain torch,
    and the ratio; stage index: scGPT's own index, PCA64,IVF16384_HNSW32,PQ16 without a second ranking."""
    readers: Annotated[int, Field(ge=2)] | None = None
    """Processes that share the work, for the stage read: measure them against one. Default: leave that out."""
    embeddings_from: Text | None = None
    """Output folder of an embed whose cells the stage index grows its vectors from. Default: synthetic vectors (100
    clusters, intrinsic dimension 24)."""
    threads: Count | None = None
    """CPU threads. Default: torch's own; one for the stage index."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Time for the runs of one figure [default: 10]; for the stage flow, what a partition takes [default: 0.5]."""
