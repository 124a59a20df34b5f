"""Precisions: what is refused, and what is warned of."""

import pytest

from scgpt_ray.errors import ConfigError
from scgpt_ray.network import precision


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


def test_a_machine_that_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "absent")
    assert not precision.emulates_bfloat16()
