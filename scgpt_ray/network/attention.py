"""Attention among the tokens of one cell, for many cells packed one after the other.

    T  tokens of a microbatch         N  heads         H  width of a head
    L  tokens of one cell             Q  queries of one cell: all L of them, or one for <cls>

Queries arrive scaled by 1 / sqrt(H), which the encoder folds into their weights. Nothing is padded:
`Spans` says where each cell begins.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.errors import ConfigError
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.elementwise import has_triton
from scgpt_ray.network.kernel_trial import first_that_works, relative_error, tolerance_of

QUERY_BLOCK = 64
"""Queries whose scores are computed together on a CPU, so that they stay in its cache."""

TRITON_WIDTHS = (16, 32, 64)
"""Widths of a head that the Triton kernel is written for."""

FLASH_WIDTHS = range(8, 257, 8)
"""Widths of a head that `varlen_attn` and flash-attention take."""

USUAL_LENGTH = 1200
"""Tokens of a full cell. The GPU kernel is told of as many even if no cell is full: it runs alike for all."""


Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Spans, Spans], Tensor]
"""(q_TNH, k_TNH, v_TNH, spans of queries, spans of keys and values) -> context_TNH."""


@dataclass(frozen=True)
class Attention:
    """A way to compute attention.

    Attributes:
        name: What a run reports.
        attend: Computes it.
        refused: Faster ways that do not work here, a line each with the reason.
    """

    name: str
    attend: Attend
    refused: tuple[str, ...] = ()


Kind: TypeAlias = Literal["auto", "cells", "blocks", "triton", "varlen", "FA3", "FA4"]
"""Names of the ways to attend; `auto` takes what suits device, dtype and width of a head."""


def choose_attention(device: torch.device, dtype: torch.dtype, width: int, kind: Kind = "auto") -> Attention:
    """The way to attend that is asked for, or the fastest that works.

    `auto` computes float32 cell by cell; on a CPU, 16 bits in blocks; on CUDA, 16 bits by the kernel of this project,
    else by torch's `varlen_attn`, else cell by cell. A kernel is tried on small cells before it is taken.
    flash-attention 3 and 4 are only taken when asked for.

    Args:
        device: Where it runs.
        dtype: Of queries, keys and values.
        width: Of a head.
        kind: What is asked for.

    Raises:
        ConfigError: If what is asked for cannot run here; nothing else is taken in its place.
    """
    assert kind in get_args(Kind), kind
    if kind != "auto":
        _require_possible(device, dtype, width, kind)
        return _WAYS[kind](width)
    kinds = kinds_for(device, dtype, width)
    attention, refused = first_that_works(
        {kind: partial(_WAYS[kind], width) for kind in kinds},
        partial(attention_error, device=device, dtype=dtype, width=width),
        tolerance_of(dtype),
    )
    if kinds == ("cells",) and dtype != torch.float32:
        refused = (f"kernels of 16 bits: none takes heads of width {width}",)
    tried: Attention = replace(attention, refused=refused)
    return tried


def kinds_for(device: torch.device, dtype: torch.dtype, width: int) -> tuple[Kind, ...]:
    """What `auto` tries, the fastest first; the last needs no kernel."""
    if dtype == torch.float32:
        return ("cells",)
    if device.type != "cuda":
        return ("blocks",)
    triton: tuple[Kind, ...] = ("triton",) if has_triton() and width in TRITON_WIDTHS else ()
    varlen: tuple[Kind, ...] = ("varlen",) if width in FLASH_WIDTHS else ()
    return (*triton, *varlen, "cells")


def attention_error(attention: Attention, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Relative error of a way to attend against the definition in float64, on small cells.

    They are longer and shorter than a kernel's tile; all their queries attend, then <cls> alone. The kernel comes
    first: where it writes nothing, its output must not find the memory of the right one.
    """
    lengths, heads = (130, 1, 70), 2
    offsets = np.append(0, np.cumsum(lengths))
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(int(offsets[-1]), 3, heads, width, generator=generator)
    qkv[:, 0] /= math.sqrt(width)
    q_TNH, k_TNH, v_TNH = qkv.to(device, dtype).unbind(1)
    cells, each = Spans.of(offsets, device), Spans.of(np.arange(len(offsets)), device)
    queries = ((q_TNH, cells), (q_TNH[cells.cu_seqlens[:-1]], each))
    found = [attention.attend(q, k_TNH, v_TNH, own, cells) for q, own in queries]
    exact = [plain_attention(q.double(), k_TNH.double(), v_TNH.double(), own, cells) for q, own in queries]
    return relative_error(zip(found, exact, strict=True))


def _require_possible(device: torch.device, dtype: torch.dtype, width: int, kind: Kind) -> None:
    if kind in ("cells", "blocks"):
        return
    if device.type != "cuda" or dtype == torch.float32:
        raise ConfigError(
            f"the attention {kind} was asked for on {device} in {dtype}",
            expected="a CUDA GPU and a precision of 16 bits",
            remedy="use the attention auto",
        )
    if kind != "triton" and width not in FLASH_WIDTHS:
        raise ConfigError(
            f"the attention {kind} was asked for, for heads of width {width}",
            expected=f"a multiple of 8 up to {FLASH_WIDTHS[-1]}",
            remedy="use the attention auto",
        )


def _triton(width: int) -> Attention:
    if not has_triton() or width not in TRITON_WIDTHS:
        raise ConfigError(
            f"the attention triton was asked for, for heads of width {width}",
            expected=f"an installed triton, and a width of {', '.join(map(str, TRITON_WIDTHS))}",
            remedy="use the attention auto",
        )
    from scgpt_ray.network.triton_attention import TritonAttention

    return Attention("triton", TritonAttention())


def _varlen(_width: int) -> Attention:
    """The kernel of torch itself, also if flash-attention 3 or 4 took its place earlier in this process."""
    from torch.nn import attention

    active = getattr(attention, "current_flash_attention_impl", None)  # torch 2.11 and later
    if active is not None and active() is not None:
        attention.restore_flash_attention_impl()
    return Attention("varlen_attn", VarlenAttention())


def _flash(version: str, _width: int) -> Attention:
    """flash-attention 3 or 4, which take the place of `varlen_attn`'s inside for the whole process."""
    from torch.nn import attention

    try:
        attention.activate_flash_attention_impl(version)
    except (AttributeError, ImportError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the attention {version} was asked for, but torch cannot activate it ({error})",
            expected="an installed flash-attention of that version, and a torch that knows it",
            remedy="install it, or use the attention auto",
        ) from error
    return Attention(f"varlen_attn by {version}", VarlenAttention())


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


_WAYS: dict[Kind, Callable[[int], Attention]] = {
    "cells": lambda _width: Attention("scaled_dot_product_attention, cell by cell", cellwise_attention),
    "blocks": lambda _width: Attention(
        f"matrix products, {QUERY_BLOCK} queries of a cell at a time", blocked_attention
    ),
    "triton": _triton,
    "varlen": _varlen,
    "FA3": partial(_flash, "FA3"),
    "FA4": partial(_flash, "FA4"),
}
