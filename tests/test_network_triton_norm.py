"""Fused element-wise operations against their plain twins: on a GPU where there is one, else in the interpreter."""

import os

import pytest
import torch
import torch.nn.functional as F

# Read when a kernel is defined, so it comes before the first import.
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"
pytest.importorskip("triton", minversion=None if torch.cuda.is_available() else "3.9")  # interpreter beside numpy 2.4

from scgpt_ray.network import triton_norm
from scgpt_ray.network.elementwise import (
    EPS,
    PLAIN,
    Linear,
    Norm,
    choose_elementwise,
    elementwise_error,
    fused_add_norm,
    fused_linear_relu,
    plain_add_norm,
    plain_linear_relu,
    working_elementwise,
)
from scgpt_ray.network.kernel_trial import tolerance_of

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("n_tokens", [0, 1, 7, 8, 9, 70])
@pytest.mark.parametrize("width", [16, 48, 512])
def test_sum_and_norm_in_float32(n_tokens, width):
    x, y, norm = randn(n_tokens, width), randn(n_tokens, width, seed=1), Norm(randn(width), randn(width, seed=2))
    fused = fused_add_norm(x, y, norm)
    assert torch.allclose(fused, plain_add_norm(x, y, norm), atol=3e-6, rtol=0)


cut_off = pytest.mark.skipif(not HAS_GPU, reason="Triton's interpreter cuts bfloat16 off instead of rounding it")


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=cut_off)])
def test_sum_and_norm_round_once(dtype):
    """Nothing is lost before the end: the result is that of float64, rounded."""
    x, y = 3 * randn(40, 64, dtype=dtype), randn(40, 64, dtype=dtype, seed=1)
    norm = Norm(randn(64), randn(64, seed=2))
    exact = F.layer_norm(x.double() + y.double(), (64,), norm.weight.double(), norm.bias.double(), EPS)
    fused = fused_add_norm(x, y, norm)
    assert fused.dtype == dtype
    spacing = torch.finfo(dtype).eps * exact.abs().clamp(min=1e-3)
    assert ((fused.double() - exact).abs() <= 0.51 * spacing + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_and_relu(dtype):
    linear = Linear(randn(24, 16, dtype=dtype), randn(24, dtype=dtype))
    x = randn(33, 16, seed=1)
    plain = plain_linear_relu(x, linear)
    assert (plain == 0).any()
    assert torch.allclose(fused_linear_relu(x, linear), plain, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


def test_the_kernel_is_launched_on_the_device_of_its_tensors(launches):
    launched = launches(triton_norm, "_add_norm_rows")
    x = randn(9, 16)
    fused_add_norm(x, randn(9, 16, seed=1), Norm(randn(16), randn(16)))
    assert len(launched) == 1
    assert launched[0] is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_fused_operations_pass_their_trial(dtype):
    fused = choose_elementwise(torch.device("cuda"), dtype)
    assert elementwise_error(fused, DEVICE, dtype, 48) < tolerance_of(dtype) / 2


def test_the_choice():
    assert working_elementwise(torch.device("cpu"), torch.bfloat16, 48) == PLAIN
    assert choose_elementwise(torch.device("cpu"), torch.bfloat16) is PLAIN
    fused = choose_elementwise(torch.device("cuda"), torch.float16)
    assert (fused.stream_dtype, fused.add_norm) == (torch.float16, fused_add_norm)
    assert fused.name != PLAIN.name
