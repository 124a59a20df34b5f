"""Self-attention within each cell of a packed microbatch: the implementations and the choice among them.

    T  tokens of a microbatch         N  heads         H  width of a head
    L  tokens of one cell             Q  queries of one cell: all L tokens, or only <cls>

Queries are already scaled by 1 / sqrt(H), which the encoder folds into their weights. Nothing is padded: `Spans` holds
the boundaries of the cells.
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
"""Queries per block on a CPU, so that their scores stay in the cache."""

TRITON_WIDTHS = (16, 32, 64)
"""Head widths that the Triton kernel supports."""

FLASH_WIDTHS = range(8, 257, 8)
"""Head widths that `varlen_attn` and flash-attention support."""

USUAL_LENGTH = 1200
"""Tokens of a full cell. The GPU kernel always gets at least this as the maximum length, so that it is configured, and
rounds, in the same way for all microbatches."""


Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Spans, Spans], Tensor]
"""(q_TNH, k_TNH, v_TNH, spans of queries, spans of keys and values) -> context_TNH."""


@dataclass(frozen=True)
class Attention:
    """An implementation of attention.

    Attributes:
        refused: Faster implementations that do not work here, each with the reason.
    """

    name: str
    attend: Attend
    refused: tuple[str, ...] = ()


Kind: TypeAlias = Literal["auto", "cells", "blocks", "triton", "varlen", "FA3", "FA4"]
"""Names of the implementations; `auto` chooses by device, dtype and head width."""


def choose_attention(device: torch.device, dtype: torch.dtype, width: int, kind: Kind = "auto") -> Attention:
    """Return the requested implementation, or for `auto` the fastest that works.

    `auto` uses: for float32, fused attention cell by cell; for 16 bits on a CPU, blocks of queries; for 16 bits on
    CUDA, the Triton kernel, else torch's `varlen_attn`, else cell by cell. A kernel is tested on small cells before it
    is used. flash-attention 3 and 4 are used on request only.

    Args:
        device: Device.
        dtype: dtype of queries, keys and values.
        width: Head width.
        kind: The requested implementation.

    Raises:
        ConfigError: If the requested implementation cannot run here; there is no fallback.
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
        refused = (f"16-bit kernels: none supports heads of width {width}",)
    tried: Attention = replace(attention, refused=refused)
    return tried


def kinds_for(device: torch.device, dtype: torch.dtype, width: int) -> tuple[Kind, ...]:
    """Implementations that `auto` tries, the fastest first; the last one always works."""
    if dtype == torch.float32:
        return ("cells",)
    if device.type != "cuda":
        return ("blocks",)
    triton: tuple[Kind, ...] = ("triton",) if has_triton() and width in TRITON_WIDTHS else ()
    varlen: tuple[Kind, ...] = ("varlen",) if width in FLASH_WIDTHS else ()
    return (*triton, *varlen, "cells")


def attention_error(attention: Attention, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Relative error of an implementation against the definition in float64, on small random cells.

    Cells are longer and shorter than a kernel's tile, and both cases occur: all queries, and <cls> only. The kernel
    runs before the definition: a kernel that writes nothing must not get memory that holds the right result.
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
            expected="a CUDA GPU and a 16-bit precision",
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
    """The kernel of torch; deactivates flash-attention 3 or 4 if it was activated earlier in this process."""
    from torch.nn import attention

    active = getattr(attention, "current_flash_attention_impl", None)  # torch 2.11 and later
    if active is not None and active() is not None:
        attention.restore_flash_attention_impl()
    return Attention("varlen_attn", VarlenAttention())


def _flash(version: str, _width: int) -> Attention:
    """flash-attention 3 or 4, which replaces the kernel behind `varlen_attn` in the whole process."""
    from torch.nn import attention

    try:
        attention.activate_flash_attention_impl(version)
    except (AttributeError, ImportError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the attention {version} was asked for, but torch cannot activate it ({error})",
            expected="an installed flash-attention of that version, and a torch that supports it",
            remedy="install it, or use the attention auto",
        ) from error
    return Attention(f"varlen_attn by {version}", VarlenAttention())


def plain_attention(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, queries: Spans, keys: Spans) -> Tensor:
    """The definition, in the dtype of its inputs; the reference for tests of the others."""
    context = [
        torch.einsum("nql,lnh->qnh", torch.einsum("qnh,lnh->nql", q_TNH[a:b], k_TNH[c:d]).softmax(-1), v_TNH[c:d])
        for (a, b), (c, d) in zip(queries, keys, strict=True)
    ]
    return torch.cat(context)


def cellwise_attention(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, queries: Spans, keys: Spans) -> Tensor:
    """One call of torch's fused attention per cell."""
    context_TNH = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
    for (a, b), (c, d) in zip(queries, keys, strict=True):
        q, k, v = (x[None].transpose(1, 2) for x in (q_TNH[a:b], k_TNH[c:d], v_TNH[c:d]))  # [1, N, L, H]
        context_TNH[a:b] = F.scaled_dot_product_attention(q, k, v, scale=1.0)[0].transpose(0, 1)
    return context_TNH


def blocked_attention(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, queries: Spans, keys: Spans) -> Tensor:
    """Matrix products and softmax for a block of queries at a time; all blocks share one buffer of scores.

    In bfloat16 on a CPU it is faster than fused attention, which does not use the bfloat16 instructions.
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
    """torch's fused attention over packed tokens, on CUDA in 16 bits; handles the keywords of all torch versions."""

    def __init__(self) -> None:
        from torch.nn.attention import varlen  # some supported builds of torch lack it

        self._varlen_attn: Callable[..., Any] = varlen.varlen_attn
        known = inspect.signature(varlen.varlen_attn).parameters
        # One split: the order of summation then does not depend on the other cells of the microbatch.
        self._keywords = {k: v for k, v in {"scale": 1.0, "num_splits": 1}.items() if k in known}
        self._always_scales = "scale" not in known

    def __call__(self, q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, queries: Spans, keys: Spans) -> Tensor:
        """Compute attention; see `Attend`."""
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
