"""Choice of a kernel by testing: the fastest one that gives the same result as the plain implementation."""

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
    """Test implementations in order and return the first that works and is accurate.

    Args:
        ways: Name -> constructor, the fastest first; the last one is the plain implementation and is not tested.
        error_of: Runs an implementation on a small input; returns its relative error against the definition.
        tolerance: Largest relative error.

    Returns:
        The implementation, and one line (name and reason) for each that was refused before it.
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
        if error <= tolerance:  # false for NaN
            return way, tuple(refused)
        refused.append(f"{name}: wrong result, relative error {error:.1e} (tolerance {tolerance:.0e})")
    return ways[plain](), tuple(refused)


def tolerance_of(dtype: torch.dtype) -> float:
    """Largest relative error in a dtype: two units in the last place; 1e-5 for float32, because of long sums."""
    return max(2 * torch.finfo(dtype).eps, 1e-5)


def relative_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Largest relative error over pairs of (computed, exact) tensors; NaN if one of them holds NaN."""
    errors = [(found.double() - exact).norm() / exact.norm() for found, exact in pairs]
    return torch.stack(errors).max().item()


def _failures() -> tuple[type[Exception], ...]:
    """Exceptions raised with a missing compiler, an old driver or another version of a library."""
    triton = sys.modules.get("triton.errors")
    return (
        RuntimeError, OSError, ImportError, AttributeError, TypeError, ValueError, AssertionError,
        subprocess.SubprocessError, *([triton.TritonError] if triton else []),
    )  # fmt: skip
