"""The trial of kernels: what fails or computes something else is passed over, and why is said."""

import subprocess
from functools import partial

import pytest
import torch

from scgpt_ray.network.attention import (
    Attention,
    attention_error,
    blocked_attention,
    cellwise_attention,
    plain_attention,
)
from scgpt_ray.network.elementwise import (
    PLAIN,
    Elementwise,
    elementwise_error,
    fused_linear_relu,
    plain_add_norm,
    plain_linear_relu,
)
from scgpt_ray.network.kernel_trial import first_that_works, relative_error, tolerance_of

CPU = torch.device("cpu")
CELLS = Attention("cells", cellwise_attention)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def fails(error):
    """A kernel that cannot be built here."""

    def make():
        raise error

    return make


def fails_when_run(error):
    """A kernel that is only found out when it is launched."""

    def attend(*_arguments):
        raise error

    return lambda: Attention("kernel", attend)


def computes(attend):
    return lambda: Attention("kernel", attend)


def choose(make, dtype=torch.float32):
    """Attention by a kernel if it works, else cell by cell."""
    error_of = partial(attention_error, device=CPU, dtype=dtype, width=16)
    return first_that_works({"kernel": make, "cells": lambda: CELLS}, error_of, tolerance_of(dtype))


def a_triton_error():
    triton = pytest.importorskip("triton")
    return triton.errors.TritonError("out of resource: shared memory")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Failed to find C compiler.\nPlease specify"), "RuntimeError: Failed to find C compiler. Please"),
        (subprocess.CalledProcessError(1, ["gcc"]), "CalledProcessError: Command '['gcc']' returned non-zero"),
        (AssertionError("libcuda.so cannot found!"), "AssertionError: libcuda.so cannot found!"),
        (ImportError("libcudart.so.12"), "ImportError: libcudart.so.12"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
    ],
)
@pytest.mark.parametrize("kernel", [fails, fails_when_run])
def test_what_fails_is_passed_over_with_its_reason(kernel, error, reason):
    way, refused = choose(kernel(error))
    assert way is CELLS
    assert len(refused) == 1
    assert refused[0].startswith(f"kernel: {reason}")


def test_errors_of_triton_are_failures_too():
    way, refused = choose(fails_when_run(a_triton_error()))
    assert way is CELLS
    assert refused == ("kernel: TritonError: out of resource: shared memory",)


def test_long_reasons_are_cut():
    _, (reason,) = choose(fails(RuntimeError("log " * 1000)))
    assert len(reason) < 250


def test_mistakes_of_our_own_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        choose(fails(ZeroDivisionError("by zero")))


def unscaled(q, k, v, queries, keys):
    return plain_attention(2 * q, k, v, queries, keys)


def without_the_last_key(q, k, v, queries, keys):
    return plain_attention(q, k, v, queries, [(start, max(start + 1, stop - 1)) for start, stop in keys])


def with_a_neighbours_key(q, k, v, queries, keys):
    return plain_attention(q, k, v, queries, [(start, min(stop + 1, len(k))) for start, stop in keys])


def wrong_for_cls_alone(q, k, v, queries, keys):
    context = plain_attention(q, k, v, queries, keys)
    return 1.1 * context if queries.longest == 1 else context


def unwritten(q, k, v, queries, keys):
    return torch.full_like(q, float("nan"))


WRONG = [unscaled, without_the_last_key, with_a_neighbours_key, wrong_for_cls_alone, unwritten]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attend", WRONG)
def test_what_computes_something_else_is_passed_over(attend, dtype):
    way, refused = choose(computes(attend), dtype)
    assert way is CELLS
    assert refused[0].startswith("kernel: wrong result, relative error ")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attend", [plain_attention, blocked_attention, cellwise_attention])
def test_what_computes_the_same_is_taken(attend, dtype):
    way, refused = choose(computes(attend), dtype)
    assert way.attend is attend
    assert refused == ()


def test_ways_are_tried_in_their_order():
    ways = {
        "a": fails(RuntimeError("no driver")), "b": computes(unscaled), "c": computes(blocked_attention),
        "d": fails(RuntimeError("never made")),
    }  # fmt: skip
    error_of = partial(attention_error, device=CPU, dtype=torch.float32, width=16)
    way, refused = first_that_works(ways, error_of, 1e-5)
    assert way.attend is blocked_attention
    assert [line.split(":")[0] for line in refused] == ["a", "b"]


def test_the_last_way_is_taken_without_a_trial():
    def error_of(way):
        raise RuntimeError("never asked")

    assert first_that_works({"cells": lambda: CELLS}, error_of, 1e-5) == (CELLS, ())


def test_nan_is_an_error():
    good, bad = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert relative_error([(good, good.double()), (good, good.double())]) == 0
    for pairs in ([(good, good), (bad, good)], [(bad, good), (good, good)]):
        assert not relative_error(pairs) <= 1e9


@pytest.mark.parametrize("dtype", DTYPES)
def test_element_wise_operations(dtype):
    assert elementwise_error(PLAIN, CPU, dtype, 48) <= tolerance_of(dtype)
    fused = Elementwise("fused", dtype, lambda x, y, n: n(x.float() + y.float()).to(dtype), fused_linear_relu)
    assert elementwise_error(fused, CPU, dtype, 48) <= tolerance_of(dtype)


@pytest.mark.parametrize(
    ("add_norm", "linear_relu"),
    [
        (lambda x, y, norm: norm(x - y), plain_linear_relu),
        (lambda x, y, norm: norm(x + y + float("nan")), plain_linear_relu),
        (plain_add_norm, lambda x, linear: linear(x)),
    ],
)
def test_wrong_element_wise_operations(add_norm, linear_relu):
    wrong = Elementwise("wrong", torch.float32, add_norm, linear_relu)
    assert not elementwise_error(wrong, CPU, torch.float32, 48) <= tolerance_of(torch.bfloat16)
