"""Attention among the tokens of a cell, with gradients.

T  tokens of a microbatch     N  heads     H  width of a head     L  tokens of a cell     R  cells of one length
"""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.network.cell_spans import Spans


def attend(qkv_T3NH: Tensor, cells: Spans) -> Tensor:
    """Attention of each token to all tokens of the same cell, without padding.

    On CUDA with 16-bit tensors this is one call of torch's varlen kernel; otherwise one call for every run of cells of
    equal length.

    Args:
        qkv_T3NH: Queries, keys and values.
        cells: Boundaries of the cells.

    Returns:
        [T, N, H].
    """
    if qkv_T3NH.device.type == "cuda" and qkv_T3NH.dtype != torch.float32:
        return _varlen(qkv_T3NH, cells)
    lengths = [(length, len(list(run))) for length, run in groupby(stop - start for start, stop in cells)]
    # One split, since the gradient of a slice is as long as the whole microbatch.
    pieces = torch.split(qkv_T3NH, [length * n_cells for length, n_cells in lengths])
    return torch.cat([_attend_run(piece, length) for piece, (length, _) in zip(pieces, lengths, strict=True)])


def _attend_run(qkv_T3NH: Tensor, length: int) -> Tensor:
    _, _, heads, width = qkv_T3NH.shape
    q, k, v = qkv_T3NH.view(-1, length, 3, heads, width).permute(2, 0, 3, 1, 4)  # [R, N, L, H] each
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, heads, width)


def _varlen(qkv_T3NH: Tensor, cells: Spans) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not in every build of torch

    q, k, v = qkv_T3NH.unbind(1)
    context = varlen_attn(q, k, v, cells.cu_seqlens, cells.cu_seqlens, cells.longest, cells.longest)
    assert isinstance(context, Tensor), "no log-sum-exp was requested"
    return context
