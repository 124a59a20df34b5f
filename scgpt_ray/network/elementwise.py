"""What stands between the matrix products of a layer: plainly in torch, or fused for a GPU.

T tokens, D width of the residual stream, F width of the feed-forward layer.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
"""Added to the variance by every LayerNorm of scGPT."""


@dataclass(frozen=True)
class Norm:
    """A layer normalisation, always in float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Normalise each row."""
        return F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, eps=EPS)


@dataclass(frozen=True)
class Linear:
    """A linear layer in its own dtype, whatever comes in."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Apply it to each row."""
        return F.linear(x_TD.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class Elementwise:
    """A way to compute what is no matrix product, with the name a run reports.

    Attributes:
        name: For people.
        stream_dtype: Of the residual stream.
        add_norm: (x_TD, y_TD, norm) -> norm(x + y) in the dtype of x, which may be overwritten.
        linear_relu: (x_TD, linear) -> relu(linear(x)).
    """

    name: str
    stream_dtype: torch.dtype
    add_norm: Callable[[Tensor, Tensor, Norm], Tensor]
    linear_relu: Callable[[Tensor, Linear], Tensor]


def choose_elementwise(device: torch.device, dtype: torch.dtype) -> Elementwise:
    """The fastest way for a device and the dtype of its linear layers.

    A fused residual stream has the dtype of the linear layers: every product reads it so anyway, and the sum is taken
    in float32. With random weights the error of float16 grows from 1.03e-3 to 1.06e-3, and the memory traffic halves.
    """
    if device.type == "cuda" and has_triton():
        return Elementwise("fused by Triton", dtype, fused_add_norm, fused_linear_relu)
    return PLAIN


def has_triton() -> bool:
    """Whether Triton is installed, as it is beside torch for CUDA."""
    return importlib.util.find_spec("triton") is not None


def plain_add_norm(x_TD: Tensor, y_TD: Tensor, norm: Norm) -> Tensor:
    """The definition; x is overwritten."""
    return norm(x_TD.add_(y_TD))


def plain_linear_relu(x_TD: Tensor, linear: Linear) -> Tensor:
    """The definition."""
    return linear(x_TD).relu_()


def fused_add_norm(x_TD: Tensor, y_TD: Tensor, norm: Norm) -> Tensor:
    """One kernel, which rounds once."""
    from scgpt_ray.network.triton_norm import add_norm  # needs Triton

    normed_TD: Tensor = add_norm(x_TD, y_TD, norm.weight, norm.bias, EPS)
    return normed_TD


def fused_linear_relu(x_TD: Tensor, linear: Linear) -> Tensor:
    """Bias and ReLU as the epilogue of the product, where the product's library (cuBLASLt) has one."""
    assert linear.bias is not None
    return torch._addmm_activation(linear.bias, x_TD.to(linear.weight.dtype), linear.weight.T)


PLAIN = Elementwise("plain", torch.float32, plain_add_norm, plain_linear_relu)
"""torch's own operations on a float32 residual stream."""
