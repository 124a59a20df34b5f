"""What is measured: the only places of this script that know how the network is put together.

Tensor names as in `scgpt_ray.network`: T tokens, N heads, H width of a head, D width of the stream.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.benchmark.synthetic import RAGGED, cell_lengths, synthetic_tokens
from scgpt_ray.network.attention import Attend, choose_attention
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.checkpoint import Checkpoint
from scgpt_ray.network.elementwise import PLAIN, choose_elementwise
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.network.encoder import Encoder, Layer
from scgpt_ray.network.precision import DTYPES
from scgpt_ray.schema import BIN, EMBEDDING, GENE, Float32Matrix, Int64Array, matrix, ragged

TileShape: TypeAlias = tuple[int, int, int, int]
"""Queries, keys, warps and stages of a tile."""

_SHORTEST = 250
"""Tokens of the shortest of the ragged cells."""


def attend_by(way: Any, device: torch.device, dtype: torch.dtype, width: int) -> Attend:
    """A way to attend by its name; on a CPU, `triton` is the kernel in Triton's interpreter."""
    if way == "triton" and device.type == "cpu":
        return attend_in_tiles(usual_tile())
    return choose_attention(device, dtype, width, way).attend


def attend_in_tiles(tile: TileShape) -> Attend:
    """The Triton kernel with a tile; on a CPU in Triton's interpreter."""
    from scgpt_ray.network.triton_attention import Tile, TritonAttention

    return TritonAttention(Tile(*tile))


def usual_tile() -> TileShape:
    """The tile for many queries that is committed."""
    from scgpt_ray.network.triton_attention import MANY_QUERIES

    return MANY_QUERIES


def constant_of(tile: TileShape) -> str:
    """The line of code that makes a tile the one for many queries."""
    from scgpt_ray.network.triton_attention import Tile

    return f"MANY_QUERIES = {Tile(*tile)!r}"


class FullLastLayer(Encoder):
    """The encoder without one of its savings: all tokens go through all of the last layer."""

    def _finish_last(self, layer: Layer, x_TD: Tensor, cells: Spans) -> Tensor:
        q_TNH, k_TNH, v_TNH = self._split(layer.queries_keys_values(x_TD), 3)
        x_TD = layer.finish(x_TD, self.attention.attend(q_TNH, k_TNH, v_TNH, cells, cells), self.elementwise)
        return x_TD[cells.cu_seqlens[:-1]]


@dataclass(frozen=True)
class Variant:
    """One way to compute the network.

    Attributes:
        fused: Whether what is no matrix product is fused.
        auto: Whether attention is what `auto` takes, else torch's own.
    """

    name: str
    encoder: type[Encoder]
    fused: bool
    auto: bool

    def build(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Encoder:
        """The network on a device."""
        torchs_own: Any = "varlen" if device.type == "cuda" else "cells"
        return self.encoder(
            checkpoint.architecture,
            checkpoint.tensors,
            device=device,
            dtype=dtype,
            attention="auto" if self.auto else torchs_own,
            elementwise=choose_elementwise(device, dtype) if self.fused else PLAIN,
        )


VARIANTS = (
    Variant("A packed, varlen, plain", FullLastLayer, fused=False, auto=False),
    Variant("B = A, last layer for <cls> only", Encoder, fused=False, auto=False),
    Variant("C = B, fused element-wise", Encoder, fused=True, auto=False),
    Variant("D = C, attention auto", Encoder, fused=True, auto=True),
)


def encoder(checkpoint: Checkpoint, device: torch.device, precision: str) -> Encoder:
    """The network as an actor computes it; in float32 by plain operations, the reference of all others."""
    dtype = DTYPES[precision]
    return Encoder(
        checkpoint.architecture,
        checkpoint.tensors,
        device=device,
        dtype=dtype,
        elementwise=PLAIN if precision == "float32" else None,
    )


def embed(embedder: Embedder, tokens: pa.Table) -> Float32Matrix:
    """Embeddings [cells, D] of cells none of which is empty."""
    found: Float32Matrix = matrix(embedder(tokens)[EMBEDDING])  # type: ignore[assignment]
    return found


def tokens_of(checkpoint: Checkpoint, lengths: Int64Array) -> pa.Table:
    """TOKENS of synthetic cells."""
    return synthetic_tokens(lengths, checkpoint.vocabulary.size, checkpoint.vocabulary.cls_token)


def boundaries(tokens: str, budget: int) -> Int64Array:
    """Of as many cells as fit into a budget of tokens."""
    n_cells = budget // (_SHORTEST if tokens == RAGGED else int(tokens))
    offsets = np.append(0, np.cumsum(cell_lengths(tokens, n_cells)))
    return np.asarray(offsets[offsets <= budget])


Microbatch: TypeAlias = tuple[Tensor, Tensor, Int64Array]
"""Genes and bins on the device, and the boundaries of the cells."""


def microbatch(checkpoint: Checkpoint, offsets: Int64Array, device: torch.device) -> Microbatch:
    """Arguments of an encoder."""
    table = tokens_of(checkpoint, np.diff(offsets))
    gene, bins = ragged(table[GENE])[1], ragged(table[BIN])[1]
    return torch.from_numpy(gene.astype(np.int32)).to(device), torch.from_numpy(bins.copy()).to(device), offsets


def first_cells(cells: Microbatch, n: int) -> Microbatch:
    """The first cells of a microbatch, as many as there are."""
    gene, bins, offsets = cells
    offsets = offsets[: n + 1]
    return gene[: offsets[-1]], bins[: offsets[-1]], offsets


def cosine_error(found: Tensor, expected: Tensor) -> float:
    """Largest 1 - cosine of rows; NaN if any of them is."""
    return (1 - F.cosine_similarity(found.double(), expected.double())).max().item()


@contextmanager
def memory_for(embedder: Embedder, tokens: int, device: torch.device) -> Iterator[None]:
    """Leave a device memory for the activations of so many tokens; a CPU's is not short, so its twin pretends."""
    network = embedder._encoder
    if device.type != "cuda":
        embedder._encoder = _Scarce(network, tokens)  # type: ignore[assignment]
        yield
        return
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + tokens * network.bytes_per_token
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(device).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


class _Scarce:
    """An encoder on a device that holds no more than some tokens at a time."""

    def __init__(self, network: Callable[..., Tensor], tokens: int) -> None:
        self._network, self._tokens = network, tokens

    def __getattr__(self, name: str) -> object:
        return getattr(self._network, name)

    def __call__(self, gene_T: Tensor, bin_T: Tensor, offsets: Int64Array) -> Tensor:
        if len(gene_T) > self._tokens:
            raise torch.cuda.OutOfMemoryError("as if memory were short")
        return self._network(gene_T, bin_T, offsets)
