"""Attention on a GPU: a Triton kernel for packed cells, with only what scGPT needs.

    T  tokens of a microbatch         N  heads         H  width of a head, 16, 32 or 64
    M  queries of a tile              L  keys of a tile

A program computes one head of one tile of queries of one cell. It iterates over the cell's keys with the online softmax
of Milakov and Gimelshein (2018, arXiv 1805.02867). There is no padding, no mask except in the last tile of keys, no
causal order, no dropout and, without a backward pass, no log-sum-exp. The order of summation depends on the cell only,
so an embedding does not depend on the other cells of the microbatch.

Importing this module needs Triton. With TRITON_INTERPRET=1 in the environment the kernel runs on a CPU, for tests.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scgpt_ray.network.attention import TRITON_WIDTHS
from scgpt_ray.network.cell_spans import Spans

LOG2E = tl.constexpr(1.4426950408889634)
"""exp(x) = exp2(x LOG2E): the multiplication becomes part of a fused multiply-add."""


class Tile(NamedTuple):
    """Tile sizes of a program, and its compile options."""

    queries: int
    keys: int
    warps: int
    stages: int


MANY_QUERIES = Tile(queries=128, keys=64, warps=4, stages=3)
"""For all queries of a cell: of the sizes that use tensor cores fully, 128 x 64 wastes least at 600 to 1200 tokens."""

ONE_QUERY = Tile(queries=16, keys=64, warps=2, stages=3)
"""For <cls> only: 16 rows are the minimum of a tensor core."""


class TritonAttention:
    """The kernel as an `Attend`.

    Args:
        tile: Tile for cells with several queries; the default is for GPUs since Ampere.
    """

    def __init__(self, tile: Tile = MANY_QUERIES) -> None:
        self._tile = tile

    def __call__(self, q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, queries: Spans, keys: Spans) -> Tensor:
        """Compute attention; see `Attend`.

        Rows of queries, keys and values must be contiguous; other strides are free, so views of packed QKV work.
        """
        n_heads, width = q_TNH.shape[1:]
        assert width in TRITON_WIDTHS, width
        assert all(x.stride(2) == 1 for x in (q_TNH, k_TNH, v_TNH)), "rows are contiguous"
        tile = ONE_QUERY if queries.longest == 1 else self._tile
        tiles = queries.tiles(tile.queries)
        context_TNH = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        if len(tiles):
            # Triton launches on the current device, not on that of the tensors.
            with torch.cuda.device_of(q_TNH):  # type: ignore[no-untyped-call]
                _attend_tile[(len(tiles) * n_heads,)](
                    q_TNH, k_TNH, v_TNH, context_TNH, queries.cu_seqlens, keys.cu_seqlens, tiles, n_heads,
                    *q_TNH.stride()[:2], *k_TNH.stride()[:2], *v_TNH.stride()[:2], *context_TNH.stride()[:2],
                    H=width, M=tile.queries, L=tile.keys, num_warps=tile.warps, num_stages=tile.stages,
                    enable_fp_fusion=True,
                )  # fmt: skip
        return context_TNH


@triton.jit
def _attend_tile(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    context: tl.tensor,
    cu_queries: tl.tensor,
    cu_keys: tl.tensor,
    tiles: tl.tensor,
    n_heads: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    context_token: tl.tensor,
    context_head: tl.tensor,
    H: tl.constexpr,
    M: tl.constexpr,
    L: tl.constexpr,
) -> None:
    """One head of one tile of queries against all keys of its cell. Strides are of a token and of a head."""
    # The heads of a tile are neighbouring programs: together they read whole rows of memory.
    head = tl.program_id(0) % n_heads
    tile = tl.program_id(0) // n_heads
    cell = tl.load(tiles + 2 * tile)
    block = tl.load(tiles + 2 * tile + 1)
    start = tl.load(cu_queries + cell).to(tl.int64)
    n_queries = (tl.load(cu_queries + cell + 1) - start).to(tl.int32)
    key_start = tl.load(cu_keys + cell).to(tl.int64)
    n_keys = (tl.load(cu_keys + cell + 1) - key_start).to(tl.int32)

    row_M1 = (block + tl.arange(0, M))[:, None]
    lane_1H = tl.arange(0, H)[None, :]
    q_MH = tl.load(q + start * q_token + head * q_head + row_M1 * q_token + lane_1H, mask=row_M1 < n_queries, other=0.0)
    k += key_start * k_token + head * k_head
    v += key_start * v_token + head * v_head
    top_M = tl.full([M], float("-inf"), tl.float32)
    sum_M = tl.zeros([M], tl.float32)
    context_MH = tl.zeros([M, H], tl.float32)
    whole = n_keys // L * L
    for key in range(0, whole, L):
        top_M, sum_M, context_MH = _add_keys(
            q_MH, k + key * k_token, v + key * v_token, top_M, sum_M, context_MH, k_token, v_token, L, H, L, False
        )
    if whole < n_keys:
        top_M, sum_M, context_MH = _add_keys(
            q_MH, k + whole * k_token, v + whole * v_token, top_M, sum_M, context_MH, k_token, v_token,
            n_keys - whole, H, L, True,
        )  # fmt: skip
    context += start * context_token + head * context_head
    tl.store(
        context + row_M1 * context_token + lane_1H,
        (context_MH / sum_M[:, None]).to(context.dtype.element_ty),
        mask=row_M1 < n_queries,
    )


@triton.jit
def _add_keys(
    q_MH: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    top_M: tl.tensor,
    sum_M: tl.tensor,
    context_MH: tl.tensor,
    k_token: tl.tensor,
    v_token: tl.tensor,
    n_keys: tl.tensor,
    H: tl.constexpr,
    L: tl.constexpr,
    IS_LAST: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Add a tile of keys to the online softmax: (largest score, sum of exponentials, weighted sum of values).

    The mask of the last tile keeps it from reading keys of the next cell.
    """
    key_L = tl.arange(0, L)
    lane_H = tl.arange(0, H)
    k_places_HL = k + key_L[None, :] * k_token + lane_H[:, None]
    v_places_LH = v + key_L[:, None] * v_token + lane_H[None, :]
    if IS_LAST:
        k_HL = tl.load(k_places_HL, mask=key_L[None, :] < n_keys, other=0.0)
        v_LH = tl.load(v_places_LH, mask=key_L[:, None] < n_keys, other=0.0)
    else:
        k_HL = tl.load(k_places_HL)
        v_LH = tl.load(v_places_LH)
    score_ML = tl.dot(q_MH, k_HL, input_precision="ieee")
    if IS_LAST:
        score_ML = tl.where(key_L[None, :] < n_keys, score_ML, float("-inf"))
    new_top_M = tl.maximum(top_M, tl.max(score_ML, 1) * LOG2E)
    weight_ML = tl.math.exp2(score_ML * LOG2E - new_top_M[:, None])
    shrink_M = tl.math.exp2(top_M - new_top_M)
    sum_M = sum_M * shrink_M + tl.sum(weight_ML, 1)
    context_MH = context_MH * shrink_M[:, None]
    context_MH = tl.dot(weight_ML.to(v_LH.dtype), v_LH, context_MH, input_precision="ieee")
    return new_top_M, sum_M, context_MH
