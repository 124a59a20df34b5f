"""Precisions of the network: the default of a device, and what a device supports."""

import logging
import threading
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from scgpt_ray.errors import ConfigError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Name of a precision -> dtype of linear layers and attention."""

FLOAT32_TOLERANCE = 1e-5
"""Largest relative error of a float32 product over 512 terms; float32 has 2e-7, TF32 has 3e-4."""

_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags in /proc/cpuinfo of CPUs with bfloat16 products: two of x86, one of ARM."""


def resolve_precision(precision: str, device: str) -> str:
    """Resolve `auto` to float16 on GPUs and float32 on CPUs; other precisions are returned unchanged.

    float16 has 8 times the resolution of bfloat16 at the same speed, and cells in which it overflows are recomputed in
    float32. Many CPUs emulate 16-bit arithmetic.

    Args:
        precision: A key of DTYPES, or "auto".
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        A key of DTYPES.
    """
    if precision != "auto":
        return precision
    return "float16" if torch.device(device).type == "cuda" else "float32"


def is_native(precision: str, device: str) -> bool:
    """Whether a device supports a resolved precision without emulation."""
    if precision == "float32" or torch.device(device).type != "cpu":
        return True
    return precision == "bfloat16" and not emulates_bfloat16()


def require_precision(device: str, precision: str) -> None:
    """Check that a device supports a precision; warn, once per process, if it is emulated.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        precision: A key of DTYPES.

    Raises:
        ConfigError: For float16 on a CPU.
    """
    if torch.device(device).type != "cpu":
        return
    if precision == "float16":
        raise ConfigError(
            "the precision float16 was asked for on a CPU",
            expected="a GPU for float16; CPUs have no fast arithmetic for it",
            remedy="use auto or float32, or bfloat16 where the processor has avx512_bf16 or amx_bf16; a run that began "
            "in float16 goes on with GPUs only",
        )
    if precision == "bfloat16":
        _warn_of_emulation()


@cache
def _warn_of_emulation() -> None:
    if emulates_bfloat16():
        logger.warning(
            "this CPU has no bfloat16 arithmetic (avx512_bf16, amx_bf16): it is emulated, more than 30 times slower "
            "than float32"
        )


def emulates_bfloat16() -> bool:
    """Whether /proc/cpuinfo (Linux) lists no flag for bfloat16 arithmetic; False if the file does not exist."""
    return _CPU_INFO.exists() and _BFLOAT16_FLAGS.isdisjoint(_CPU_INFO.read_text(encoding="utf-8").split())


class ExactFloat32:
    """Context in which float32 products are computed in float32, and 16-bit products are accumulated in float32.

    TF32 (CUDA), bfloat16 instead of float32 (oneDNN) and reduced-precision accumulation are process-wide switches that
    an environment variable or another library may have turned on. They are off while any thread is in the context, and
    restored when the last one leaves.
    """

    def __init__(self) -> None:
        cuda, onednn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        self._switches: list[tuple[Any, str, object]] = [
            (cuda, "fp32_precision", "ieee"),
            (onednn, "fp32_precision", "ieee"),
            (cuda, "allow_fp16_reduced_precision_reduction", False),
            (cuda, "allow_bf16_reduced_precision_reduction", False),
            (cuda, "allow_fp16_accumulation", False),
        ]
        self._before: list[object] = []
        self._inside = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [getattr(place, name) for place, name, _ in self._switches]
                for place, name, value in self._switches:
                    setattr(place, name, value)
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for (place, name, _), value in zip(self._switches, self._before, strict=True):
                    setattr(place, name, value)


exact_float32 = ExactFloat32()
"""The context of this process."""


def require_float32(device: torch.device) -> None:
    """Check that a device multiplies float32 matrices in float32; an environment variable can force TF32.

    Raises:
        ConfigError: If the error is larger than that of float32.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator).to(device) for _ in range(2))
    with exact_float32:
        found = torch.mm(a, b).double()
    exact = a.double() @ b.double()
    error = ((found - exact).norm() / exact.norm()).item()
    if not error <= FLOAT32_TOLERANCE:
        raise ConfigError(
            f"products of float32 on {device} have a relative error of {error:.1e}",
            expected=f"at most {FLOAT32_TOLERANCE:.0e}, that of float32 and not of TF32",
            remedy="unset NVIDIA_TF32_OVERRIDE, or set it to 0",
        )
