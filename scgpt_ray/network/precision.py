"""The precisions of the network, and where each makes sense."""

import logging
from functools import cache
from pathlib import Path

import torch

from scgpt_ray.errors import ConfigError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""dtype of linear layers and attention by the name of a precision."""

_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Words of /proc/cpuinfo for products of bfloat16: x86's two, and that of ARM."""


def require_precision(device: str, precision: str) -> None:
    """Require that a device computes in a precision; warn, once in a process, where it can only emulate it.

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
            remedy="use float32, or bfloat16 where the processor has avx512_bf16 or amx_bf16",
        )
    if precision == "bfloat16":
        _warn_of_emulation()


@cache
def _warn_of_emulation() -> None:
    if emulates_bfloat16():
        logger.warning(
            "this CPU has no bfloat16 arithmetic (avx512_bf16, amx_bf16): it is emulated, and far slower than float32"
        )


def emulates_bfloat16() -> bool:
    """Whether this machine says what its processor can do (Linux does), and bfloat16 is not among it."""
    return _CPU_INFO.exists() and _BFLOAT16_FLAGS.isdisjoint(_CPU_INFO.read_text(encoding="utf-8").split())
