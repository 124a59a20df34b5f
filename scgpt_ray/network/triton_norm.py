"""Residual sum and LayerNorm in one pass over memory: a Triton kernel.

    T  tokens, R of them to a program         D  width of the residual stream

As separate operations they would write and read the stream once more. Importing this module needs Triton. With
TRITON_INTERPRET=1 in the environment the kernel runs on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 8
"""Tokens per program: two per warp; a thread reads 16 bytes of a token at a time."""

WARPS = 4


def add_norm(x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """LayerNorm(x + y) in float32, rounded to the dtype of x.

    Args:
        x_TD: Residual stream, contiguous.
        y_TD: Output of a sublayer, to be added; contiguous.
        weight_D: Weight of the norm, float32.
        bias_D: Bias of the norm, float32.
        eps: Added to the variance.
    """
    n_tokens, width = x_TD.shape
    assert x_TD.is_contiguous()
    assert y_TD.is_contiguous()
    normed_TD = torch.empty_like(x_TD)
    if n_tokens:
        # Triton launches on the current device, not on that of the tensors.
        with torch.cuda.device_of(x_TD):  # type: ignore[no-untyped-call]
            _add_norm_rows[(triton.cdiv(n_tokens, ROWS),)](
                x_TD, y_TD, weight_D, bias_D, normed_TD, n_tokens, eps,
                D=width, R=ROWS, BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
                enable_fp_fusion=True,
            )  # fmt: skip
    return normed_TD


@triton.jit
def _add_norm_rows(
    x: tl.tensor,
    y: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    normed: tl.tensor,
    n_tokens: tl.tensor,
    eps: tl.tensor,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Process R rows; sum, mean and variance stay in registers."""
    row_R1 = (tl.program_id(0).to(tl.int64) * R + tl.arange(0, R))[:, None]
    lane_1D = tl.arange(0, BLOCK)[None, :]
    is_lane_1D = lane_1D < D
    known_RD = (row_R1 < n_tokens) & is_lane_1D
    place_RD = row_R1 * D + lane_1D
    sum_RD = tl.load(x + place_RD, mask=known_RD, other=0.0).to(tl.float32)
    sum_RD += tl.load(y + place_RD, mask=known_RD, other=0.0).to(tl.float32)
    mean_R1 = (tl.sum(sum_RD, 1) / D)[:, None]
    centred_RD = tl.where(is_lane_1D, sum_RD - mean_R1, 0.0)
    variance_R1 = (tl.sum(centred_RD * centred_RD, 1) / D)[:, None]
    normed_RD = centred_RD * (1.0 / tl.sqrt(variance_R1 + eps))
    normed_RD = normed_RD * tl.load(weight + lane_1D, mask=is_lane_1D, other=0.0)
    normed_RD += tl.load(bias + lane_1D, mask=is_lane_1D, other=0.0)
    tl.store(normed + place_RD, normed_RD.to(normed.dtype.element_ty), mask=known_RD)
