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
from scgpt_ray.training.attention import attend

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
