"""Precisions: what `auto` is, what is refused, what is warned of, and that float32 is float32."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from scgpt_ray.errors import ConfigError
from scgpt_ray.network import precision
from scgpt_ray.network.precision import exact_float32, require_float32


@pytest.fixture
def cpu_with(monkeypatch, tmp_path):
    """Let the processor have some flags."""

    def having(flags):
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} avx2\n")
        monkeypatch.setattr(precision, "_CPU_INFO", info)
        precision._warn_of_emulation.cache_clear()

    yield having
    precision._warn_of_emulation.cache_clear()


@pytest.mark.parametrize(
    ("asked", "device", "resolved"),
    [
        ("auto", "cuda", "float16"),
        ("auto", "cuda:1", "float16"),
        ("auto", "cpu", "float32"),
        ("float32", "cuda", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_auto_follows_the_device(asked, device, resolved):
    assert precision.resolve_precision(asked, device) == resolved


@pytest.mark.parametrize("flags", ["avx512f", "avx512_bf16"])
def test_auto_is_never_bfloat16_on_a_cpu(cpu_with, flags):
    cpu_with(flags)
    assert precision.resolve_precision("auto", "cpu") == "float32"


@pytest.mark.parametrize(
    ("name", "device", "flags", "native"),
    [
        ("float32", "cpu", "", True),
        ("float16", "cpu", "avx512_bf16", False),
        ("bfloat16", "cpu", "avx512_bf16", True),
        ("bfloat16", "cpu", "avx2", False),
        ("float16", "cuda:0", "", True),
        ("bfloat16", "cuda", "", True),
    ],
)
def test_what_a_device_has_arithmetic_for(cpu_with, name, device, flags, native):
    cpu_with(flags)
    assert precision.is_native(name, device) is native


def test_float16_is_for_gpus():
    with pytest.raises(ConfigError, match="float16 was asked for on a CPU"):
        precision.require_precision("cpu", "float16")
    precision.require_precision("cuda:1", "float16")


@pytest.mark.parametrize("flags", ["avx512_bf16", "avx512f amx_bf16", "bf16"])
def test_bfloat16_in_hardware_is_no_news(cpu_with, caplog, flags):
    cpu_with(flags)
    precision.require_precision("cpu", "bfloat16")
    assert caplog.records == []


def test_emulated_bfloat16_is_warned_of_once(cpu_with, caplog):
    cpu_with("avx512f")
    for wanted in ("float32", "bfloat16", "bfloat16"):
        precision.require_precision("cpu", wanted)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no bfloat16 arithmetic" in caplog.text
    assert "30 times slower than float32" in caplog.text


def test_a_machine_that_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "absent")
    assert not precision.emulates_bfloat16()


def switches():
    """What decides how products of float32 and of 16 bits are computed."""
    cuda = torch.backends.cuda.matmul
    return [
        cuda.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        cuda.allow_fp16_reduced_precision_reduction,
        cuda.allow_bf16_reduced_precision_reduction,
        cuda.allow_fp16_accumulation,
    ]


EXACT = ["ieee", "ieee", False, False, False]


@pytest.fixture
def coarse():
    """A process that asks for speed in place of precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    yield ["tf32", "bf16", True, True, True]
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    torch.set_float32_matmul_precision(before)


def test_float32_is_float32_inside_and_what_it_was_outside(coarse):
    assert switches() == coarse
    with exact_float32:
        assert switches() == EXACT
        with exact_float32:
            assert switches() == EXACT
        assert switches() == EXACT
    assert switches() == coarse
    assert torch.get_float32_matmul_precision() == "medium"


def test_an_error_inside_leaves_nothing_behind(coarse):
    with pytest.raises(ZeroDivisionError), exact_float32:
        raise ZeroDivisionError
    assert switches() == coarse


def test_threads_do_not_switch_each_other_off(coarse):
    both, one_left = Barrier(2), Barrier(2)

    def first():
        with exact_float32:
            both.wait(60)
        one_left.wait(60)
        return EXACT

    def second():
        with exact_float32:
            both.wait(60)
            one_left.wait(60)  # the other has left meanwhile
            return switches()

    with ThreadPoolExecutor(2) as threads:
        assert [each.result(60) for each in [threads.submit(first), threads.submit(second)]] == [EXACT, EXACT]
    assert switches() == coarse


def test_whatever_the_environment_says():
    """TORCH_ALLOW_TF32_CUBLAS_OVERRIDE turns TF32 on in a process that never asked for it."""
    program = (
        "import json, torch\n"
        "from scgpt_ray.network.precision import exact_float32\n"
        "before = torch.backends.cuda.matmul.fp32_precision\n"
        "with exact_float32: print(json.dumps([before, torch.backends.cuda.matmul.fp32_precision]))"
    )
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["tf32", "ieee"]


def tf32(x):
    """Rounded to the 10 bits of TF32's significand."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_products_that_are_not_float32_are_refused(monkeypatch):
    cpu = torch.device("cpu")
    require_float32(cpu)
    for product in (lambda a, b: tf32(a) @ tf32(b), lambda a, b: (a.bfloat16() @ b.bfloat16()).float()):
        monkeypatch.setattr(torch, "mm", product)
        with pytest.raises(ConfigError, match=r"relative error of .*; expected at most 1e-05.*NVIDIA_TF32_OVERRIDE"):
            require_float32(cpu)
    monkeypatch.setattr(torch, "mm", lambda a, b: a @ b * float("nan"))
    with pytest.raises(ConfigError, match="relative error of nan"):
        require_float32(cpu)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_multiplies_in_float32(coarse):
    require_float32(torch.device("cuda"))
