"""Attention with heads of 64 against float64, with outputs and neighbours poisoned."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.subjects import attend_by
from scgpt_ray.network.attention import Attend, plain_attention
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.kernel_trial import relative_error
from scgpt_ray.network.precision import DTYPES

HEAD_WIDTH = 64
LIMITS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Largest relative error."""


def run(bench: Bench) -> None:
    """Check every way to attend in every precision, for all queries of a cell and for one."""
    for precision in bench.sizes.precisions:
        dtype = DTYPES[precision]
        for way in bench.sizes.ways:
            with bench.report.attempt(f"{way}, {precision}"):
                _check(bench, way, attend_by(way, bench.device, dtype, HEAD_WIDTH), dtype)


def _check(bench: Bench, way: str, attend: Attend, dtype: torch.dtype) -> None:
    for one_query in (False, True):
        error = attention_error(
            attend, bench.sizes.edges, bench.sizes.architecture.nheads, dtype, bench.device, one_query
        )
        queries = "one query" if one_query else "all queries"
        bench.report.check(f"{way}, {queries}, {dtype}", error, LIMITS[dtype])


def attention_error(
    attend: Attend,
    lengths: tuple[int, ...],
    heads: int,
    dtype: torch.dtype,
    device: torch.device,
    one_query: bool = False,
) -> float:
    """Relative error of a way to attend to the definition in float64.

    What it does not write is NaN, and so is all of a cell before and one behind those that are looked at.

    Args:
        attend: The way.
        lengths: Tokens of the cells.
        heads: N.
        dtype: Of queries, keys and values.
        device: Where it runs.
        one_query: Whether each cell has its first query only, as in the last layer.
    """
    offsets = np.cumsum([0, HEAD_WIDTH, *lengths, HEAD_WIDTH]).astype(np.int64)
    qkv = torch.randn(int(offsets[-1]), 3, heads, HEAD_WIDTH, device=device)
    qkv[:, 0] /= HEAD_WIDTH**0.5
    qkv[: offsets[1]] = qkv[offsets[-2] :] = torch.nan
    q_TNH, k_TNH, v_TNH = qkv.to(dtype).unbind(1)
    keys = Spans.of(offsets, device)
    queries = keys
    if one_query:
        q_TNH = q_TNH[keys.cu_seqlens[:-1]]
        queries = Spans.of(np.arange(len(offsets)), device)
    with poisoned():
        found = attend(q_TNH, k_TNH, v_TNH, queries, keys)
    expected = plain_attention(q_TNH.double(), k_TNH.double(), v_TNH.double(), queries, keys)
    inner = slice(queries.offsets[1], queries.offsets[-2])
    return relative_error([(found[inner], expected[inner])])


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory that torch allocates with NaN, so that what a kernel does not write shows."""
    torch.set_deterministic_debug_mode("warn")
    assert torch.empty(3).isnan().all(), "torch fills what it allocates"
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("default")
