"""Attention among the tokens of a cell, with gradients.

T  tokens of a microbatch     N  heads     H  width of a head     L  tokens of a cell     R  cells of one shape
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.network.cell_spans import Spans


@dataclass(frozen=True)
class KnownTokens:
    """Which tokens of packed cells have known values: the first ones of each cell.

    Known tokens attend to the known tokens of their cell; an unknown token attends to these and to itself.

    Attributes:
        counts: Number of known tokens of each cell, at least 1.
        unknown_T1: bool, True for unknown tokens, on the device.
    """

    counts: list[int]
    unknown_T1: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], cells: Spans) -> "KnownTokens":
        """Make it of the number of known tokens of each cell."""
        is_unknown = [np.arange(stop - start) >= n for (start, stop), n in zip(cells, counts, strict=True)]
        unknown_T1 = torch.from_numpy(np.concatenate(is_unknown)[:, None])
        return cls(list(counts), unknown_T1.to(cells.cu_seqlens.device, non_blocking=True))


def attend(qkv_T3NH: Tensor, cells: Spans, known: KnownTokens | None = None, dropout: float = 0.0) -> Tensor:
    """Attention among the tokens of the same cell, without padding.

    One call of torch's varlen kernel where that is possible (`fits_varlen`), otherwise one call of
    `scaled_dot_product_attention` for every run of cells of equal shape.

    Args:
        qkv_T3NH: Queries, keys and values.
        cells: Boundaries of the cells.
        known: Which tokens are known; None if all are, and each attends to all.
        dropout: Probability of dropping an attention weight.

    Returns:
        [T, N, H].
    """
    if fits_varlen(qkv_T3NH.device, qkv_T3NH.dtype, masked=known is not None, dropout=dropout):
        return _varlen(qkv_T3NH, cells)
    lengths = [stop - start for start, stop in cells]
    shapes = zip(lengths, lengths if known is None else known.counts, strict=True)
    runs = [(shape, len(list(run))) for shape, run in groupby(shapes)]
    # One split, since the gradient of a slice is as long as the whole microbatch.
    pieces = torch.split(qkv_T3NH, [length * n_cells for (length, _), n_cells in runs])
    contexts = [
        _attend_run(piece, length, n_known, dropout) for piece, ((length, n_known), _) in zip(pieces, runs, strict=True)
    ]
    return torch.cat(contexts)


def fits_varlen(device: torch.device, dtype: torch.dtype, *, masked: bool, dropout: float) -> bool:
    """Whether torch's varlen kernel can do it: on CUDA, in 16 bits, and it has neither masks nor dropout.

    Args:
        device: Device of the queries.
        dtype: Type of the queries.
        masked: Whether some tokens are unknown.
        dropout: Probability of dropping an attention weight.
    """
    return device.type == "cuda" and dtype != torch.float32 and not masked and not dropout


def _attend_run(qkv_T3NH: Tensor, length: int, n_known: int, dropout: float) -> Tensor:
    _, _, heads, width = qkv_T3NH.shape
    q, k, v = qkv_T3NH.view(-1, length, 3, heads, width).permute(2, 0, 3, 1, 4)  # [R, N, L, H] each
    seen_LL = None
    if n_known < length:
        seen_LL = torch.eye(length, dtype=torch.bool, device=q.device)  # [query, key]
        seen_LL[:, :n_known] = True
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_LL, dropout_p=dropout)
    return context.transpose(1, 2).reshape(-1, heads, width)


def _varlen(qkv_T3NH: Tensor, cells: Spans) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not in every build of torch

    q, k, v = qkv_T3NH.unbind(1)
    context = varlen_attn(q, k, v, cells.cu_seqlens, cells.cu_seqlens, cells.longest, cells.longest)
    assert isinstance(context, Tensor), "no log-sum-exp was requested"
    return context
