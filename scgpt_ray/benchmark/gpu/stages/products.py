"""What the device can do at best, and what it does for the matrix products of a layer."""

from collections.abc import Callable
from functools import partial

import torch

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.launches import seconds_per_launch
from scgpt_ray.benchmark.model import TERA
from scgpt_ray.network.elementwise import Linear, Norm, choose_elementwise, fused_linear_relu


def run(bench: Bench) -> None:
    """Measure ceilings, then products with their epilogues."""
    _ceilings(bench)
    for factor in (3, 2, 1):  # queries, keys and values; keys and values; all others
        _products(bench, factor * bench.sizes.architecture.embsize)


def _ceilings(bench: Bench) -> None:
    """A large product, a large copy, and sum and LayerNorm, which only move memory."""
    n = bench.sizes.matrix
    bench.report.figure(f"product {n} x {n} x {n}", bench.ceiling / TERA, "TFLOP/s")
    source = torch.empty(bench.sizes.copied, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    _rate(bench, "copy, read and written", 2 * len(source), "TB/s", partial(target.copy_, source))
    x_TD = _random(bench, bench.sizes.tokens, bench.sizes.architecture.embsize)
    y_TD = torch.randn_like(x_TD)
    norm = Norm(*(torch.rand(x_TD.shape[1], device=bench.device) for _ in range(2)))
    elementwise = choose_elementwise(bench.device, bench.dtype)
    moved = 3 * x_TD.numel() * x_TD.itemsize
    add_norm = partial(elementwise.add_norm, x_TD, y_TD, norm)
    _rate(bench, f"sum and LayerNorm, {elementwise.name}", moved, "TB/s", add_norm)


def _products(bench: Bench, n_out: int) -> None:
    """One shape: with a bias, with the residual added by the product (beta 1), and with bias and ReLU."""
    tokens, n_in = bench.sizes.tokens, bench.sizes.architecture.embsize
    x_TI, residual_TO = _random(bench, tokens, n_in), _random(bench, tokens, n_out)
    # So small that the residual, which every launch adds to, stays far from overflow.
    weight_OI, bias_O = _random(bench, n_out, n_in) / n_in, _random(bench, n_out)
    linear = Linear(weight_OI, bias_O)
    operations = 2 * tokens * n_in * n_out
    ways: dict[str, Callable[[], object]] = {
        "bias": partial(linear, x_TI),
        "residual in place": partial(residual_TO.addmm_, x_TI, weight_OI.T),
        "bias and ReLU": partial(fused_linear_relu, x_TI, linear),
    }
    for way, work in ways.items():
        name = f"{tokens} x {n_in} x {n_out}, {way}"
        with bench.report.attempt(name):
            _rate(bench, name, operations, "TFLOP/s", work)


def _rate(bench: Bench, name: str, amount: float, unit: str, work: Callable[[], object]) -> None:
    """A figure of what is done or moved in a second."""
    seconds = seconds_per_launch(work, bench.device, bench.sizes.seconds)
    bench.report.figure(name, amount / seconds / TERA, unit, precision=bench.sizes.precision)


def _random(bench: Bench, *shape: int) -> torch.Tensor:
    """Normal values; zeros would run faster than real data."""
    return torch.randn(*shape, device=bench.device, dtype=bench.dtype)
