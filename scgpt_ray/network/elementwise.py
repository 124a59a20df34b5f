"""The element-wise operations of a layer (residual sum, LayerNorm, ReLU): plain torch, or fused for GPUs.

T tokens, D width of the residual stream, F width of the feed-forward layer.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.network.kernel_trial import first_that_works, relative_error, tolerance_of

EPS = 1e-5
"""Added to the variance by every LayerNorm of scGPT."""


@dataclass(frozen=True)
class Norm:
    """LayerNorm in float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Normalise each row."""
        return F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, eps=EPS)


@dataclass(frozen=True)
class Linear:
    """A linear layer; casts its input to the dtype of the weights."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Apply it to each row."""
        return F.linear(x_TD.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class Elementwise:
    """An implementation of the element-wise operations.

    Attributes:
        stream_dtype: dtype of the residual stream.
        add_norm: (x_TD, y_TD, norm) -> norm(x + y) in the dtype of x, which may be overwritten.
        linear_relu: (x_TD, linear) -> relu(linear(x)).
        refused: A faster implementation that does not work here, with the reason.
    """

    name: str
    stream_dtype: torch.dtype
    add_norm: Callable[[Tensor, Tensor, Norm], Tensor]
    linear_relu: Callable[[Tensor, Linear], Tensor]
    refused: tuple[str, ...] = ()


def choose_elementwise(device: torch.device, dtype: torch.dtype) -> Elementwise:
    """The fastest implementation for a device and the dtype of its linear layers.

    The fused implementation keeps the residual stream in the dtype of the linear layers, which halves memory traffic;
    sums are computed in float32. With random weights the error of float16 grows from 1.03e-3 to 1.06e-3.
    """
    if device.type == "cuda" and has_triton():
        return Elementwise("fused by Triton", dtype, fused_add_norm, fused_linear_relu)
    return PLAIN


def working_elementwise(device: torch.device, dtype: torch.dtype, width: int) -> Elementwise:
    """The fastest implementation if it passes a test on a few tokens; else the plain one."""
    fastest = choose_elementwise(device, dtype)
    way, refused = first_that_works(
        {fastest.name: lambda: fastest, PLAIN.name: lambda: PLAIN},
        partial(elementwise_error, device=device, dtype=dtype, width=width),
        tolerance_of(dtype),
    )
    tried: Elementwise = replace(way, refused=refused)
    return tried


def elementwise_error(way: Elementwise, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Relative error of an implementation against the definition in float64, on a few random tokens."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x_TD, y_TD = normal(70, width).to(way.stream_dtype), normal(70, width).to(dtype)
    norm = Norm(1 + normal(width), normal(width))
    weight, bias = normal(width, width).to(dtype), normal(width).to(dtype)
    found = [way.add_norm(x_TD.clone(), y_TD, norm), way.linear_relu(x_TD, Linear(weight, bias))]
    exact = [
        plain_add_norm(x_TD.double(), y_TD.double(), Norm(norm.weight.double(), norm.bias.double())),
        plain_linear_relu(x_TD.double(), Linear(weight.double(), bias.double())),
    ]
    return relative_error(zip(found, exact, strict=True))


def has_triton() -> bool:
    """Whether Triton is installed; CUDA builds of torch bring it."""
    return importlib.util.find_spec("triton") is not None


def plain_add_norm(x_TD: Tensor, y_TD: Tensor, norm: Norm) -> Tensor:
    """norm(x + y), the definition; x is overwritten."""
    return norm(x_TD.add_(y_TD))


def plain_linear_relu(x_TD: Tensor, linear: Linear) -> Tensor:
    """relu(linear(x)), the definition."""
    return linear(x_TD).relu_()


def fused_add_norm(x_TD: Tensor, y_TD: Tensor, norm: Norm) -> Tensor:
    """norm(x + y) in one kernel, which rounds once."""
    from scgpt_ray.network.triton_norm import add_norm  # needs Triton

    return add_norm(x_TD, y_TD, norm.weight, norm.bias, EPS)


def fused_linear_relu(x_TD: Tensor, linear: Linear) -> Tensor:
    """relu(linear(x)) with bias and ReLU fused into the matrix product (cuBLASLt)."""
    assert linear.bias is not None
    return torch._addmm_activation(linear.bias, x_TD.to(linear.weight.dtype), linear.weight.T)


PLAIN = Elementwise("plain", torch.float32, plain_add_norm, plain_linear_relu)
"""torch's own operations on a float32 residual stream."""
