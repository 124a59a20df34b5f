"""Attention among the tokens of one cell, for many cells packed one after the other.

    T  tokens of a microbatch         N  heads         H  width of a head
    L  tokens of one cell             Q  queries of one cell: all L of them, or one for <cls>

Queries arrive scaled by 1 / sqrt(H), which the encoder folds into their weights. Nothing is padded:
`Spans` says where each cell begins.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 64
"""Queries whose scores are computed together on a CPU, so that they stay in its cache."""

USUAL_LENGTH = 1200
"""Tokens of a full cell. The GPU kernel is told of as many even if no cell is full: it runs alike for all."""


@dataclass(frozen=True)
class Spans:
    """Where each cell begins and ends in packed tokens.

    Args:
        offsets: On the host, n_cells + 1 of them, starting at 0.
        cu_seqlens: The same, int32, on the device.
    """

    offsets: list[int]
    cu_seqlens: Tensor

    @classmethod
    def of(cls, offsets: npt.NDArray[np.int64], device: torch.device) -> "Spans":
        """Make spans of boundaries that start at 0."""
        return cls(offsets.tolist(), torch.from_numpy(offsets.astype(np.int32)).to(device, non_blocking=True))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest cell."""
        return max((stop - start for start, stop in self), default=0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.offsets[:-1], self.offsets[1:], strict=True)


Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Spans, Spans], Tensor]
"""(q_TNH, k_TNH, v_TNH, spans of queries, spans of keys and values) -> context_TNH."""


@dataclass(frozen=True)
class Attention:
    """A way to compute attention, with the name a run reports."""

    name: str
    attend: Attend


def choose_attention(device: torch.device, dtype: torch.dtype) -> Attention:
    """The fastest attention for a device and a dtype; there is no other to fall back to."""
    if dtype == torch.float32:
        return Attention("scaled_dot_product_attention, cell by cell", cellwise_attention)
    if device.type == "cuda":
        return Attention("varlen_attn", VarlenAttention())
    return Attention(f"matrix products, {QUERY_BLOCK} queries of a cell at a time", blocked_attention)


def plain_attention(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, queries: Spans, keys: Spans) -> Tensor:
    """The definition, in the dtype given: what the others are tested against."""
    context = [
        torch.einsum("nql,lnh->qnh", torch.einsum("qnh,lnh->nql", q_TNH[a:b], k_TNH[c:d]).softmax(-1), v_TNH[c:d])
        for (a, b), (c, d) in zip(queries, keys, strict=True)
    ]
    return torch.cat(context)


def cellwise_attention(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, queries: Spans, keys: Spans) -> Tensor:
    """One call of torch's fused attention for each cell, which wastes nothing where a cell is much work."""
    context_TNH = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
    for (a, b), (c, d) in zip(queries, keys, strict=True):
        q, k, v = (x[None].transpose(1, 2) for x in (q_TNH[a:b], k_TNH[c:d], v_TNH[c:d]))  # [1, N, L, H]
        context_TNH[a:b] = F.scaled_dot_product_attention(q, k, v, scale=1.0)[0].transpose(0, 1)
    return context_TNH


def blocked_attention(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, queries: Spans, keys: Spans) -> Tensor:
    """Products and softmax for a few queries at a time; one buffer of scores serves all cells.

    In bfloat16 on a CPU it beats the fused attention, whose products do not reach the bfloat16 instructions.
    """
    n_heads = q_TNH.shape[1]
    context_TNH = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
    buffer = q_TNH.new_empty(n_heads * QUERY_BLOCK * keys.longest)
    for (a, b), (c, d) in zip(queries, keys, strict=True):
        q_NQH, k_NLH, v_NLH = (x.transpose(0, 1).contiguous() for x in (q_TNH[a:b], k_TNH[c:d], v_TNH[c:d]))
        k_NHL = k_NLH.transpose(1, 2)
        for block in range(a, b, QUERY_BLOCK):
            stop = min(block + QUERY_BLOCK, b)
            scores_NQL = buffer[: n_heads * (stop - block) * (d - c)].view(n_heads, stop - block, d - c)
            torch.bmm(q_NQH[:, block - a : stop - a], k_NHL, out=scores_NQL)
            torch.softmax(scores_NQL, -1, out=scores_NQL)
            context_TNH[block:stop] = torch.bmm(scores_NQL, v_NLH).transpose(0, 1)
    return context_TNH


class VarlenAttention:
    """torch's fused attention over packed tokens, on CUDA in half precision, with any version's keywords."""

    def __init__(self) -> None:
        from torch.nn.attention import varlen  # not in every build of torch that runs the rest

        self._varlen_attn: Callable[..., Any] = varlen.varlen_attn
        known = inspect.signature(varlen.varlen_attn).parameters
        # One split: the sums of a cell are then added in the same order, whoever its neighbours are.
        self._keywords = {k: v for k, v in {"scale": 1.0, "num_splits": 1}.items() if k in known}
        self._always_scales = "scale" not in known

    def __call__(self, q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, queries: Spans, keys: Spans) -> Tensor:
        """Attend; see `Attend`."""
        if self._always_scales:
            q_TNH = q_TNH * math.sqrt(q_TNH.shape[2])
        most_keys = max(USUAL_LENGTH, keys.longest)
        most_queries = 1 if queries.longest == 1 else most_keys
        context_TNH: Tensor = self._varlen_attn(
            q_TNH,
            k_TNH,
            v_TNH,
            queries.cu_seqlens,
            keys.cu_seqlens,
            most_queries,
            most_keys,
            **self._keywords,
        )
        return context_TNH
