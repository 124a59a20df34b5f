"""The choice of a kernel by trial: the fastest one that computes here what its plain twin computes."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Way = TypeVar("Way")

_LONGEST_REASON = 200


def first_that_works(
    ways: Mapping[str, Callable[[], Way]], error_of: Callable[[Way], float], tolerance: float
) -> tuple[Way, tuple[str, ...]]:
    """Try ways to compute something in their order, and take the first that neither fails nor computes something else.

    Args:
        ways: Name -> maker, the fastest first; the last one needs nothing but torch and is taken without a trial.
        error_of: Runs a way on a small input; returns its relative error against the definition.
        tolerance: Largest error.

    Returns:
        The way, and a line for each way before it: its name and why it was refused.
    """
    *kernels, plain = ways
    refused: list[str] = []
    for name in kernels:
        try:
            way = ways[name]()
            error = error_of(way)
        except _failures() as failure:
            reason = " ".join(str(failure).split())[:_LONGEST_REASON]
            refused.append(f"{name}: {type(failure).__name__}: {reason}")
            continue
        if error <= tolerance:  # not so if it is NaN
            return way, tuple(refused)
        refused.append(f"{name}: wrong result, relative error {error:.1e} (tolerance {tolerance:.0e})")
    return ways[plain](), tuple(refused)


def tolerance_of(dtype: torch.dtype) -> float:
    """Largest relative error in a dtype: two units in the last place, and for float32 the rounding of long sums."""
    return max(2 * torch.finfo(dtype).eps, 1e-5)


def relative_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Largest relative error of tensors against exact ones; NaN if one of them holds NaN."""
    errors = [(found.double() - exact).norm() / exact.norm() for found, exact in pairs]
    return torch.stack(errors).max().item()


def _failures() -> tuple[type[Exception], ...]:
    """What a missing compiler, an old driver, or another version of a library raises."""
    triton = sys.modules.get("triton.errors")
    return (
        RuntimeError, OSError, ImportError, AttributeError, TypeError, ValueError, AssertionError,
        subprocess.SubprocessError, *([triton.TritonError] if triton else []),
    )  # fmt: skip
