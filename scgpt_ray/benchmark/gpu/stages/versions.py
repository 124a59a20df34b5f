"""Versions, driver and compiler: what the machine has, and whether a first Triton kernel comes out right."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import torch

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.report import Report
from scgpt_ray.network.elementwise import Norm, fused_add_norm, plain_add_norm
from scgpt_ray.network.kernel_trial import relative_error

_PACKAGES = ("torch", "triton", "numpy", "pyarrow", "numba", "h5py", "pytest")
_COMPILERS = ("cc", "gcc", "clang")
_NVIDIA_SMI = [
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit",
    "--format=csv,noheader",
]
_ROWS = 16
_TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"


def run(bench: Bench) -> None:
    """Report versions, then compile."""
    report = bench.report
    report.figure("python", platform.python_version(), cores=os.cpu_count() or 0, machine=platform.platform())
    for name in _PACKAGES:
        try:
            report.figure(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            report.failure(name, "not installed")
    report.figure("CUDA of torch", str(torch.version.cuda))
    report.figure("nvidia-smi", _said(_NVIDIA_SMI))
    compiler = next((path for path in map(shutil.which, _COMPILERS) if path), None)
    report.figure("C compiler", _said([compiler, "--version"]) if compiler else "absent")
    report.figure("Python.h", "there" if Path(sysconfig.get_path("include"), "Python.h").exists() else "absent")
    report.figure(_TF32_OVERRIDE, os.environ.get(_TF32_OVERRIDE, "not set"))
    if bench.device.type == "cuda":
        _describe_gpu(report, bench.device)
    with report.attempt("first Triton kernel"):
        _first_kernel(bench)


def _said(command: list[str]) -> str:
    """The first line that a program prints."""
    if shutil.which(command[0]) is None:
        return "absent"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0]


def _describe_gpu(report: Report, device: torch.device) -> None:
    """What torch sees."""
    gpu = torch.cuda.get_device_properties(device)
    report.figure("GPU", gpu.name, capability=f"{gpu.major}.{gpu.minor}")
    report.figure("multiprocessors", gpu.multi_processor_count)
    report.figure("L2", gpu.L2_cache_size / 2**20, "MiB")
    report.figure("memory", gpu.total_memory / 2**30, "GiB")


def _first_kernel(bench: Bench) -> None:
    """Compile and run the kernel of sum and LayerNorm."""
    width = bench.sizes.architecture.embsize
    x_TD, y_TD = (torch.randn(_ROWS, width, device=bench.device, dtype=bench.dtype) for _ in range(2))
    norm = Norm(torch.rand(width, device=bench.device), torch.rand(width, device=bench.device))
    began = time.perf_counter()
    found_TD = fused_add_norm(x_TD, y_TD, norm)
    bench.report.figure("first Triton kernel", time.perf_counter() - began, "s")
    expected_TD = plain_add_norm(x_TD.float(), y_TD.float(), norm).double()
    error = relative_error([(found_TD, expected_TD)])
    bench.report.check("first Triton kernel, relative error", error, torch.finfo(bench.dtype).eps)
