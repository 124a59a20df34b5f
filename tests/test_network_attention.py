"""Attention: every fast way against the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgpt_ray.errors import ConfigError
from scgpt_ray.network import attention as attention_module
from scgpt_ray.network.attention import (
    Attention,
    VarlenAttention,
    blocked_attention,
    cellwise_attention,
    choose_attention,
    kinds_for,
    plain_attention,
)
from scgpt_ray.network.cell_spans import Spans

CPU = torch.device("cpu")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def packed(lengths, heads=3, width=8, seed=0):
    """q (scaled), k, v as views of one tensor, as the encoder hands them over, and the boundaries of the cells."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(lengths), 3, heads, width, generator=generator)
    qkv[:, 0] /= width**0.5
    return (*qkv.unbind(1), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def first_of_each(q, offsets):
    """Only the first query of each cell, with its spans."""
    return q[torch.from_numpy(offsets[:-1])], np.arange(len(offsets))


@pytest.mark.parametrize("attend", [cellwise_attention, blocked_attention])
@given(lengths=st.lists(st.integers(1, 140), min_size=1, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_float32_on_a_cpu_is_the_definition(attend, lengths, seed):
    q, k, v, offsets = packed(lengths, seed=seed)
    cells = Spans.of(offsets, CPU)
    plain = plain_attention(q.double(), k.double(), v.double(), cells, cells)
    assert torch.allclose(attend(q, k, v, cells, cells).double(), plain, atol=2e-6, rtol=0)
    q, each = first_of_each(q, offsets)
    each = Spans.of(each, CPU)
    plain = plain_attention(q.double(), k.double(), v.double(), each, cells)
    assert torch.allclose(attend(q, k, v, each, cells).double(), plain, atol=2e-6, rtol=0)


def test_bfloat16_on_a_cpu_is_near_the_definition():
    q, k, v, offsets = packed([1, 200, 63, 64, 65])
    q, k, v = (x.bfloat16() for x in (q, k, v))
    cells = Spans.of(offsets, CPU)
    plain = plain_attention(q.double(), k.double(), v.double(), cells, cells)
    found = blocked_attention(q, k, v, cells, cells)
    assert found.dtype == torch.bfloat16
    assert (found.double() - plain).norm() / plain.norm() < 1e-2


def test_one_key_is_its_own_context():
    q, k, v, offsets = packed([1, 1])
    cells = Spans.of(offsets, CPU)
    for attend in (plain_attention, cellwise_attention, blocked_attention):
        assert torch.allclose(attend(q, k, v, cells, cells), v)


def test_a_cell_does_not_see_its_neighbours():
    q, k, v, offsets = packed([5, 90, 7])
    cells, alone = Spans.of(offsets, CPU), Spans.of(np.array([0, 90]), CPU)
    for attend in (plain_attention, cellwise_attention, blocked_attention):
        one = attend(q[5:95], k[5:95], v[5:95], alone, alone)
        assert torch.equal(attend(q, k, v, cells, cells)[5:95], one)


def test_spans():
    spans = Spans.of(np.array([0, 3, 10, 11]), CPU)
    assert list(spans) == [(0, 3), (3, 10), (10, 11)]
    assert spans.longest == 7
    assert spans.cu_seqlens.dtype == torch.int32
    assert Spans.of(np.array([0]), CPU).longest == 0


def test_the_choice_has_a_name():
    float32, bfloat16 = (choose_attention(CPU, dtype, 64) for dtype in (torch.float32, torch.bfloat16))
    assert (float32.attend, bfloat16.attend) == (cellwise_attention, blocked_attention)
    assert float32.name != bfloat16.name


CUDA, HALF = torch.device("cuda"), torch.float16


@pytest.mark.parametrize(
    ("device", "dtype", "width", "has_triton", "kinds"),
    [
        (CPU, torch.float32, 64, True, ("cells",)),
        (CPU, torch.bfloat16, 64, True, ("blocks",)),
        (CUDA, torch.float32, 64, True, ("cells",)),
        (CUDA, HALF, 64, True, ("triton", "varlen", "cells")),
        (CUDA, torch.bfloat16, 16, True, ("triton", "varlen", "cells")),
        (CUDA, HALF, 64, False, ("varlen", "cells")),
        (CUDA, HALF, 24, True, ("varlen", "cells")),
        (CUDA, HALF, 256, True, ("varlen", "cells")),
        (CUDA, HALF, 12, True, ("cells",)),  # the golden cp_classes
        (CUDA, HALF, 264, True, ("cells",)),
    ],
)
def test_what_auto_tries(monkeypatch, device, dtype, width, has_triton, kinds):
    monkeypatch.setattr(attention_module, "has_triton", lambda: has_triton)
    assert kinds_for(device, dtype, width) == kinds


@pytest.fixture
def kernels(monkeypatch):
    """Let `auto` on a CPU try kernels as it does on CUDA: kernels(triton, varlen), each an attend function."""

    def install(triton, varlen):
        monkeypatch.setattr(attention_module, "kinds_for", lambda _device, *rest: kinds_for(CUDA, *rest))
        for kind, attend in (("triton", triton), ("varlen", varlen)):
            monkeypatch.setitem(
                attention_module._WAYS, kind, lambda _width, kind=kind, attend=attend: Attention(kind, attend)
            )

    monkeypatch.setattr(attention_module, "has_triton", lambda: True)
    return install


def without_a_compiler(*_arguments):
    raise RuntimeError("Failed to find C compiler")


def wrong(q, k, v, queries, keys):
    return plain_attention(q, k, 2 * v, queries, keys)


@pytest.mark.parametrize(
    ("triton", "varlen", "name", "refused"),
    [
        (plain_attention, plain_attention, "triton", []),
        (without_a_compiler, plain_attention, "varlen", ["triton: RuntimeError: Failed to find C compiler"]),
        (wrong, plain_attention, "varlen", ["triton: wrong result"]),
        (
            without_a_compiler,
            wrong,
            "scaled_dot_product_attention, cell by cell",
            ["triton: RuntimeError", "varlen: wrong result"],
        ),
    ],
)
def test_auto_goes_down_to_what_works(kernels, triton, varlen, name, refused):
    kernels(triton, varlen)
    found = choose_attention(CPU, HALF, 32)
    assert found.name == name
    assert len(found.refused) == len(refused)
    assert all(line.startswith(start) for line, start in zip(found.refused, refused, strict=True))


def test_heads_that_no_kernel_takes_are_computed_cell_by_cell(kernels):
    kernels(without_a_compiler, without_a_compiler)  # not even tried
    found = choose_attention(CPU, HALF, 12)
    assert found.attend is cellwise_attention
    assert found.refused == ("16-bit kernels: none supports heads of width 12",)
    q, k, v, offsets = packed([1, 70], width=12)
    q, k, v, cells = q.half(), k.half(), v.half(), Spans.of(offsets, CPU)
    plain = plain_attention(q.double(), k.double(), v.double(), cells, cells)
    assert (found.attend(q, k, v, cells, cells).double() - plain).norm() / plain.norm() < 1e-3


def test_what_is_asked_for_is_not_replaced(kernels):
    kernels(without_a_compiler, wrong)
    assert choose_attention(CUDA, HALF, 32, "varlen").attend is wrong
    assert choose_attention(CUDA, HALF, 32, "triton").attend is without_a_compiler


@pytest.mark.parametrize(
    ("device", "dtype", "width", "kind", "message"),
    [
        (CPU, torch.bfloat16, 64, "triton", "triton was asked for on cpu"),
        (CUDA, torch.float32, 64, "varlen", "varlen was asked for on cuda in torch.float32"),
        (CUDA, HALF, 12, "varlen", "varlen was asked for, for heads of width 12; expected a multiple of 8 up to 256"),
        (CUDA, HALF, 264, "FA3", "FA3 was asked for, for heads of width 264"),
        (CUDA, HALF, 24, "triton", "triton was asked for, for heads of width 24"),
    ],
)
def test_what_cannot_run_is_refused(device, dtype, width, kind, message):
    with pytest.raises(ConfigError, match=message):
        choose_attention(device, dtype, width, kind)


def test_without_triton_its_kernel_is_refused(monkeypatch):
    monkeypatch.setattr(attention_module, "has_triton", lambda: False)
    with pytest.raises(ConfigError, match="an installed triton"):
        choose_attention(CUDA, HALF, 64, "triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine where flash-attention cannot be installed")
@pytest.mark.parametrize("kind", ["FA3", "FA4"])
def test_flash_attention_is_not_replaced_by_another(kind):
    with pytest.raises(ConfigError, match=f"{kind} was asked for, but torch cannot activate it"):
        choose_attention(torch.device("cuda"), torch.float16, 64, kind)
    with pytest.raises(ConfigError, match=f"{kind} was asked for on cpu"):
        choose_attention(CPU, torch.float16, 64, kind)


def test_tiles_cover_every_token_once_and_long_cells_come_first():
    spans = Spans.of(np.array([0, 3, 13, 14, 22]), CPU)
    assert spans.tiles(4).tolist() == [[1, 0], [1, 4], [1, 8], [3, 0], [3, 4], [0, 0], [2, 0]]
    assert spans.tiles(4).dtype == torch.int32
    assert spans.tiles(4) is spans.tiles(4)
    assert spans.tiles(100).tolist() == [[1, 0], [3, 0], [0, 0], [2, 0]]
    assert Spans.of(np.array([0]), CPU).tiles(4).shape == (0, 2)


@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        pytest.param(torch.float32, 1e-5, marks=gpu),
        pytest.param(torch.bfloat16, 1e-2, marks=gpu),
        pytest.param(torch.float16, 2e-3, marks=gpu),
    ],
)
def test_cuda_is_near_the_definition(dtype, error):
    device = torch.device("cuda")
    q, k, v, offsets = packed([1, 1200, 600, 17, 1300], heads=8, width=64)
    q, k, v = (x.to(device, dtype) for x in (q, k, v))
    cells = Spans.of(offsets, device)
    attend = choose_attention(device, dtype, 64).attend
    plain = plain_attention(q.double(), k.double(), v.double(), cells, cells)
    assert (attend(q, k, v, cells, cells).double() - plain).norm() / plain.norm() < error
    each = Spans.of(np.arange(len(offsets)), device)
    q = q[cells.cu_seqlens[:-1]]
    plain = plain_attention(q.double(), k.double(), v.double(), each, cells)
    assert (attend(q, k, v, each, cells).double() - plain).norm() / plain.norm() < error


def with_scale(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, num_splits=None):
    assert (scale, num_splits) == (1.0, 1)
    return of_a_version(q, k, v, cu_q, cu_k, max_q, max_k)


def without_scale(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False):
    return of_a_version(q / q.shape[2] ** 0.5, k, v, cu_q, cu_k, max_q, max_k)


def of_a_version(q, k, v, cu_q, cu_k, max_q, max_k):
    queries, keys = (Spans.of(cu.numpy().astype(np.int64), CPU) for cu in (cu_q, cu_k))
    assert queries.longest <= max_q
    assert keys.longest <= max_k
    return plain_attention(q, k, v, queries, keys)


@pytest.mark.parametrize("version", [with_scale, without_scale])
@pytest.mark.parametrize("lengths", [[3, 20, 1], [1300, 2]])
def test_varlen_attention_speaks_to_every_version_of_torch(monkeypatch, version, lengths):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", version)
    q, k, v, offsets = packed(lengths)
    cells, each = Spans.of(offsets, CPU), Spans.of(np.arange(len(offsets)), CPU)
    attend = VarlenAttention()
    for queries, own in ((q, cells), (q[cells.cu_seqlens[:-1]], each)):
        plain = plain_attention(queries, k, v, own, cells)
        assert torch.allclose(attend(queries, k, v, own, cells), plain, atol=1e-5, rtol=0)
