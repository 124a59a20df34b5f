"""Every variant on one GPU in under ten minutes: `python -m scgpt_ray.benchmark.gpu > figures.jsonl`.

Needs torch for CUDA (which brings triton), numpy and pyarrow, and pytest for the checks. In this order, one JSON line
per figure as soon as it is known: the GPU's ceilings; attention alone, by kernel and tile; the encoder, from plain
packed torch (A) to what `auto` takes (D), each with its error; budgets; precisions, from Arrow to Arrow; the tests
marked gpu. What a GPU cannot run is a line, too, with the reason in place of a number.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scgpt_ray.benchmark.measurement import Figure, median_seconds
from scgpt_ray.benchmark.model import (
    WHOLE_HUMAN,
    ModelRequest,
    benchmark_model,
    matmul_rate,
    nominal_flops,
    random_checkpoint_of,
)
from scgpt_ray.benchmark.synthetic import RAGGED, cell_lengths, synthetic_tokens
from scgpt_ray.errors import ConfigError
from scgpt_ray.network.attention import Attend, choose_attention, plain_attention
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.checkpoint import Checkpoint
from scgpt_ray.network.elementwise import PLAIN, Norm, choose_elementwise
from scgpt_ray.network.encoder import Encoder, Layer
from scgpt_ray.schema import BIN, GENE, Int64Array, ragged

TOKENS = 65_536
"""Of the microbatch that kernels and encoders are measured on."""

LENGTHS = ("1200", "600", RAGGED)
BUDGETS = (16_384, 32_768, 65_536, 131_072, 262_144)
TILES = ((128, 64), (128, 128), (64, 64), (64, 128))
WARPS, STAGES = (4, 8), (2, 3, 4)
HALF = torch.float16
HEADS, WIDTH, HEAD_WIDTH = WHOLE_HUMAN.nheads, WHOLE_HUMAN.embsize, WHOLE_HUMAN.embsize // WHOLE_HUMAN.nheads
SECONDS = 0.15
"""For the runs of one figure of a kernel; ten times as much end to end."""

CUDA = torch.device("cuda")
_TERA = 1e12


class FullLastLayer(Encoder):
    """The encoder without one of its savings: all tokens go through all of the last layer."""

    def _finish_last(self, layer: Layer, x_TD: Tensor, cells: Spans) -> Tensor:
        q_TNH, k_TNH, v_TNH = self._split(layer.queries_keys_values(x_TD), 3)
        x_TD = layer.finish(x_TD, self.attention.attend(q_TNH, k_TNH, v_TNH, cells, cells), self.elementwise)
        return x_TD[cells.cu_seqlens[:-1]]


def main() -> None:
    """Print all figures as JSON lines, then run the tests; the exit code is that of the tests."""
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA GPU")
    checkpoint = random_checkpoint_of(WHOLE_HUMAN)
    ceiling = matmul_rate(CUDA, HALF, SECONDS)
    for figure in figures(checkpoint, ceiling):
        sys.stdout.write(figure.to_json() + "\n")
        sys.stdout.flush()
    sys.exit(run_tests())


def figures(checkpoint: Checkpoint, ceiling: float) -> Iterator[Figure]:
    """Everything, in order."""
    yield from ceilings(ceiling)
    for tokens in LENGTHS:
        yield from attention_figures(tokens)
    for tokens in LENGTHS:
        yield from encoder_figures(checkpoint, tokens, ceiling)
        yield from budget_figures(checkpoint, tokens, ceiling)
    for precision in ("float16", "bfloat16", "float32"):
        for tokens in LENGTHS:
            cells = 1024 if precision == "float32" else 4096
            request = ModelRequest("cuda", precision, tokens, cells, seconds=10 * SECONDS)
            yield from benchmark_model(request)
    torch.cuda.empty_cache()
    yield from benchmark_model(ModelRequest("cuda", "float16", RAGGED, 512, against="naive", seconds=10 * SECONDS))


def seconds_on_gpu(work: Callable[[], object]) -> float:
    """Median time of a piece of work that fills the GPU's queue."""

    def finished() -> None:
        work()
        torch.cuda.synchronize()

    return median_seconds(finished, SECONDS, least_runs=5)


def ceilings(ceiling: float) -> Iterator[Figure]:
    """What the GPU can do at best: products of a layer's shapes, copying, and the norm kernel."""
    setting: dict[str, str | int | float] = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
        "triton": "there" if importlib.util.find_spec("triton") else "absent", "precision": "float16",
    }  # fmt: skip
    yield Figure("ceiling", "product 8192 x 8192 x 8192", ceiling / _TERA, "TFLOP/s", setting)
    x_TD = torch.randn(TOKENS, WIDTH, device=CUDA, dtype=HALF)
    for columns in (3 * WIDTH, WIDTH):
        weight = torch.randn(columns, WIDTH, device=CUDA, dtype=HALF)
        rate = 2 * TOKENS * WIDTH * columns / seconds_on_gpu(partial(F.linear, x_TD, weight)) / _TERA
        yield Figure("ceiling", f"product {TOKENS} x {WIDTH} x {columns}", rate, "TFLOP/s", setting)
    large = torch.empty(2**30, dtype=torch.uint8, device=CUDA)
    copied = 2 * len(large) / seconds_on_gpu(partial(torch.clone, large))
    yield Figure("ceiling", "copy, read and written", copied / _TERA, "TB/s", setting)
    norm = Norm(torch.ones(WIDTH, device=CUDA), torch.zeros(WIDTH, device=CUDA))
    add_norm = choose_elementwise(CUDA, HALF).add_norm
    moved = 3 * x_TD.numel() * x_TD.itemsize
    yield Figure("ceiling", "sum and norm", moved / seconds_on_gpu(partial(add_norm, x_TD, x_TD, norm)) / _TERA,
                 "TB/s", setting)  # fmt: skip


def attention_figures(tokens: str) -> Iterator[Figure]:
    """Attention alone, by kernel and tile, with its error against float64 on the first cells."""
    offsets = microbatch(tokens, TOKENS)
    generator = torch.Generator(CUDA).manual_seed(0)
    qkv = torch.randn(int(offsets[-1]), 3, HEADS, HEAD_WIDTH, device=CUDA, generator=generator)
    qkv[:, 0] /= HEAD_WIDTH**0.5
    q_TNH, k_TNH, v_TNH = qkv.to(HALF).unbind(1)
    cells = Spans.of(offsets, CUDA)
    few = Spans.of(offsets[:4], CUDA)
    end = int(offsets[3])
    plain = plain_attention(q_TNH[:end].double(), k_TNH[:end].double(), v_TNH[:end].double(), few, few)
    flops = float(4 * WIDTH * (np.diff(offsets).astype(float) ** 2).sum())
    for name, make in attention_ways():
        setting: dict[str, str | int | float] = {"attention": name, "tokens": tokens, "precision": "float16"}
        try:
            attend = make()
            seconds = seconds_on_gpu(partial(attend, q_TNH, k_TNH, v_TNH, cells, cells))
        except (ConfigError, RuntimeError) as reason:  # a tile too large for the GPU, or a kernel that is not there
            yield Figure("attention", f"cannot run: {' '.join(str(reason).split())[:200]}", 0.0, "", setting)
            continue
        context = attend(q_TNH, k_TNH, v_TNH, cells, cells)[:end].double()
        yield Figure("attention", "rate", flops / seconds / _TERA, "TFLOP/s", setting)
        yield Figure("attention", "relative error", ((context - plain).norm() / plain.norm()).item(), "", setting)


def attention_ways() -> Iterator[tuple[str, Callable[[], Attend]]]:
    """Names and makers of all ways; flash-attention 3 and 4 last, for they stay active in `varlen_attn`."""
    yield "varlen", partial(attend_by, "varlen")
    if importlib.util.find_spec("triton") is not None:
        from scgpt_ray.network.triton_attention import Tile, TritonAttention

        for queries, keys in TILES:
            for warps in WARPS:
                for stages in STAGES:
                    tile = Tile(queries, keys, warps, stages)
                    yield f"triton {queries} x {keys}, {warps} warps, {stages} stages", partial(TritonAttention, tile)
    for version in ("FA3", "FA4"):
        if importlib.util.find_spec("flash_attn_interface" if version == "FA3" else "flash_attn") is not None:
            yield version, partial(attend_by, version)


def attend_by(kind: Any) -> Attend:
    """The way to attend of that name."""
    return choose_attention(CUDA, HALF, HEAD_WIDTH, kind).attend


def encoder_figures(checkpoint: Checkpoint, tokens: str, ceiling: float) -> Iterator[Figure]:
    """The whole network on one microbatch, one saving after the other, with its error against float32."""
    gene, bins, offsets = microbatch_tokens(checkpoint, tokens, TOKENS)
    exact = Encoder(checkpoint.architecture, checkpoint.tensors, device=CUDA, dtype=torch.float32)
    n_few = 4
    end = int(offsets[n_few])
    reference = exact(gene[:end], bins[:end], offsets[: n_few + 1]).double()
    del exact
    fused = choose_elementwise(CUDA, HALF)
    variants: list[tuple[str, type[Encoder], dict[str, Any]]] = [
        ("A packed, varlen, plain", FullLastLayer, {"attention": "varlen", "elementwise": PLAIN}),
        ("B = A, last layer for <cls> only", Encoder, {"attention": "varlen", "elementwise": PLAIN}),
        ("C = B, fused element-wise", Encoder, {"attention": "varlen", "elementwise": fused}),
        ("D = C, triton attention", Encoder, {"attention": "auto", "elementwise": fused}),
    ]
    for name, kind, ways in variants:
        encoder = kind(checkpoint.architecture, checkpoint.tensors, device=CUDA, dtype=HALF, **ways)
        error = 1 - F.cosine_similarity(encoder(gene[:end], bins[:end], offsets[: n_few + 1]).double(), reference)
        yield from rates(name, encoder, (gene, bins, offsets), tokens, ceiling)
        yield Figure("encoder", "largest 1 - cosine to float32", error.max().item(), "",
                     {"variant": name, "tokens": tokens, "precision": "float16"})  # fmt: skip


def budget_figures(checkpoint: Checkpoint, tokens: str, ceiling: float) -> Iterator[Figure]:
    """The fastest encoder on microbatches of other sizes."""
    encoder = Encoder(checkpoint.architecture, checkpoint.tensors, device=CUDA, dtype=HALF)
    for budget in BUDGETS:
        cells = microbatch_tokens(checkpoint, tokens, budget)
        yield from rates(f"budget {budget}", encoder, cells, tokens, ceiling)


def rates(
    name: str, encoder: Encoder, cells: tuple[Tensor, Tensor, Int64Array], tokens: str, ceiling: float
) -> Iterator[Figure]:
    """cells/s, MFU and memory of an encoder on one microbatch."""
    lengths = np.diff(cells[2])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = seconds_on_gpu(partial(encoder, *cells))
    held = torch.cuda.max_memory_allocated() - before
    setting: dict[str, str | int | float] = {
        "variant": name, "tokens": tokens, "attention": encoder.attention.name, "precision": "float16",
        "microbatch": int(lengths.sum()),
    }  # fmt: skip
    yield Figure("encoder", "cells", len(lengths) / seconds, "cells/s", setting)
    yield Figure("encoder", "MFU", nominal_flops(lengths, WHOLE_HUMAN) / seconds / ceiling, "", setting)
    yield Figure("encoder", "activations", held / lengths.sum(), "bytes a token", setting)
    yield Figure("encoder", "activations, as budgeted", encoder.bytes_per_token, "bytes a token", setting)


def microbatch(tokens: str, budget: int) -> Int64Array:
    """Boundaries of as many cells as fit into a budget."""
    offsets = np.append(0, np.cumsum(cell_lengths(tokens, budget // 100)))
    return np.asarray(offsets[offsets <= budget])


def microbatch_tokens(checkpoint: Checkpoint, tokens: str, budget: int) -> tuple[Tensor, Tensor, Int64Array]:
    """Genes and bins on the GPU, and their boundaries."""
    vocabulary = checkpoint.vocabulary
    table = synthetic_tokens(np.diff(microbatch(tokens, budget)), vocabulary.size, vocabulary.cls_token)
    offsets, gene = ragged(table[GENE])
    _, bins = ragged(table[BIN])
    return torch.from_numpy(gene.astype(np.int32)).to(CUDA), torch.from_numpy(bins.copy()).to(CUDA), offsets


def run_tests() -> int:
    """Run the tests of the network marked gpu, and those of the kernels, which then run on the GPU, too."""
    tests = Path(__file__).resolve().parents[2] / "tests"
    files = [str(path) for path in sorted(tests.glob("test_model_*.py")) if "tokens" not in path.name]
    needed = [name for name in ("pytest", "pytest_timeout", "hypothesis") if importlib.util.find_spec(name) is None]
    if needed or not files:
        sys.stderr.write(f"the tests were not run: {', '.join(needed) or 'the folder tests/'} is missing\n")
        return 1
    chosen = [sys.executable, "-m", "pytest", "-q", "-m", "not golden", "-k", "cuda or gpu or triton", *files]
    return subprocess.run(chosen, cwd=tests.parent, stdout=sys.stderr, check=False).returncode


if __name__ == "__main__":
    main()
