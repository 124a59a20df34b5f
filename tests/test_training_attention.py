"""Attention with a gradient against its definition, and against padded torch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.network.attention import plain_attention
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.training.attention import KnownTokens, attend, fits_varlen

CPU = torch.device("cpu")
HEADS, WIDTH = 2, 8
LENGTHS = {
    "one token": [1],
    "one cell": [9],
    "ragged": [7, 3, 1, 5],
    "runs of one length": [6, 6, 6, 2, 2, 1, 1, 1],
    "a length that comes again": [4, 4, 2, 4],
    "rising": [1, 2, 3, 4],
}


def drawn(lengths, device=CPU, dtype=torch.float32):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    qkv = torch.randn(int(offsets[-1]), 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(len(lengths)))
    return qkv.to(device, dtype), Spans.of(offsets, torch.device(device))


def by_definition(qkv_T3NH, cells):
    q, k, v = qkv_T3NH.unbind(1)
    return plain_attention(q / WIDTH**0.5, k, v, cells, cells)


def padded(qkv_T3NH, cells):
    """torch's attention over cells padded to the longest, with a mask."""
    longest = cells.longest
    rows = torch.stack([F.pad(qkv_T3NH[a:b], (0, 0) * 3 + (0, longest - b + a)) for a, b in cells])  # [C, L, 3, N, H]
    q, k, v = rows.permute(2, 0, 3, 1, 4)
    lengths = torch.tensor([b - a for a, b in cells])
    mask = (torch.arange(longest) < lengths[:, None])[:, None, None, :]
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    return torch.cat([row[:length] for row, length in zip(context, lengths, strict=True)])


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_it_is_the_definition(lengths):
    qkv, cells = drawn(lengths)
    assert attend(qkv, cells).shape == (sum(lengths), HEADS, WIDTH)
    torch.testing.assert_close(attend(qkv, cells), by_definition(qkv, cells), rtol=0, atol=1e-6)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_any_lengths(lengths):
    qkv, cells = drawn(lengths)
    torch.testing.assert_close(attend(qkv, cells), by_definition(qkv, cells), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_gradients_are_those_of_padded_cells(lengths):
    weight = torch.randn(sum(lengths), HEADS, WIDTH)
    gradients = []
    for way in (attend, padded):
        qkv, cells = drawn(lengths)
        qkv.requires_grad_()
        (way(qkv, cells) * weight).sum().backward()
        gradients.append(qkv.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_a_cell_does_not_see_its_neighbours():
    qkv, cells = drawn([3, 3, 3])
    before = attend(qkv, cells)
    changed = qkv.clone()
    changed[3:6] += 1
    after = attend(changed, cells)
    same = [torch.equal(before[a:b], after[a:b]) for a, b in pairwise([0, 3, 6, 9])]
    assert same == [True, False, True]


KNOWN = {
    "one unknown token": [(2, 1)],
    "only <cls> is known": [(6, 1)],
    "nothing is unknown": [(4, 4), (3, 3)],
    "one length, different shares": [(6, 5), (6, 5), (6, 2)],
    "ragged": [(7, 3), (3, 2), (1, 1), (5, 5), (5, 1)],
}


def generating(shapes):
    qkv, cells = drawn([length for length, _ in shapes])
    return qkv, cells, KnownTokens.of([known for _, known in shapes], cells)


def by_dense_softmax(qkv_T3NH, shapes):
    """Token by token: who is seen is written down as a list of positions."""
    context, start = [], 0
    for length, n_known in shapes:
        for token in range(start, start + length):
            seen = list(range(start, start + n_known)) + ([token] if token >= start + n_known else [])
            q, k, v = qkv_T3NH[token, 0], qkv_T3NH[seen, 1], qkv_T3NH[seen, 2]
            weights_SN = ((k * q).sum(2) / WIDTH**0.5).softmax(0)
            context.append((weights_SN[:, :, None] * v).sum(0))
        start += length
    return torch.stack(context)


@pytest.mark.parametrize("shapes", KNOWN.values(), ids=KNOWN)
def test_unknown_tokens_see_the_known_ones_and_themselves(shapes):
    weight = torch.randn(sum(length for length, _ in shapes), HEADS, WIDTH)
    found = []
    for way in (lambda qkv, cells, known: attend(qkv, cells, known), lambda qkv, *_: by_dense_softmax(qkv, shapes)):
        qkv, cells, known = generating(shapes)
        qkv.requires_grad_()
        context = way(qkv, cells, known)
        (context * weight).sum().backward()
        found.append((context.detach(), qkv.grad))
    for ours, dense in zip(*found, strict=True):
        torch.testing.assert_close(ours, dense, rtol=0, atol=1e-5)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=8))
def test_any_number_of_unknown_tokens(numbers):
    shapes = [(known + unknown, known) for known, unknown in numbers]
    qkv, cells, known = generating(shapes)
    torch.testing.assert_close(attend(qkv, cells, known), by_dense_softmax(qkv, shapes), rtol=0, atol=1e-6)
    flags = [row >= n for length, n in shapes for row in range(length)]
    assert known.unknown_T1[:, 0].tolist() == flags


def test_no_token_sees_another_unknown_one():
    qkv, cells, known = generating([(5, 2)])
    before = attend(qkv, cells, known)
    changed = qkv.clone()
    changed[3] += 1
    same = [torch.equal(one, other) for one, other in zip(before, attend(changed, cells, known), strict=True)]
    assert same == [True, True, True, False, True]


@pytest.mark.parametrize("shapes", [[(8, 8)] * 40, [(8, 3)] * 40], ids=["all known", "some unknown"])
def test_dropped_weights_are_zero_and_the_others_larger(shapes):
    """Values that are unit vectors show the weights."""
    qkv, cells, known = generating(shapes)
    qkv[:, 2] = torch.eye(8).repeat(40, 1)[:, None]
    plain = attend(qkv, cells, known)
    torch.manual_seed(0)
    dropped = attend(qkv, cells, known, 0.25)
    is_zero = (dropped == 0) & (plain > 0)
    assert 0.2 < is_zero.sum() / (plain > 0).sum() < 0.3
    torch.testing.assert_close(dropped[~is_zero], plain[~is_zero] / 0.75)


@pytest.mark.parametrize(
    ("device", "dtype", "masked", "dropout", "fits"),
    [
        ("cuda", torch.bfloat16, False, 0.0, True),
        ("cuda", torch.bfloat16, True, 0.0, False),
        ("cuda", torch.bfloat16, False, 0.1, False),
        ("cuda", torch.float32, False, 0.0, False),
        ("cpu", torch.bfloat16, False, 0.0, False),
    ],
)
def test_where_the_varlen_kernel_fits(device, dtype, masked, dropout, fits):
    assert fits_varlen(torch.device(device), dtype, masked=masked, dropout=dropout) is fits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shapes", KNOWN.values(), ids=KNOWN)
def test_unknown_tokens_on_a_gpu(shapes, dtype):
    found = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float32)):
        qkv, cells = drawn([length for length, _ in shapes], device, kind)
        qkv.requires_grad_()
        context = attend(qkv, cells, KnownTokens.of([known for _, known in shapes], cells))
        context.sum().backward()
        found.append((context.float().cpu(), qkv.grad.float().cpu()))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_the_varlen_kernel_and_its_gradient(lengths):
    found = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        qkv, cells = drawn(lengths, device, dtype)
        qkv.requires_grad_()
        context = attend(qkv, cells)
        context.sum().backward()
        found.append((context.float().cpu(), qkv.grad.float().cpu()))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=3e-2)
