"""The embedder where things go wrong: float16 overflows, memory runs out, two threads call at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.sizes import LIMITS
from scgpt_ray.benchmark.gpu.subjects import boundaries, cosine_error, embed, memory_for, tokens_of
from scgpt_ray.network.checkpoint import EMBEDDING_TABLE, Checkpoint
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.schema import GENE, Float32Matrix

_THREADS, _TABLES = 2, 8
_LARGE_WEIGHT = 40_000.0


def run(bench: Bench) -> None:
    """Check all three."""
    tokens = tokens_of(bench.checkpoint, np.diff(boundaries(bench.sizes.lengths[-1], bench.sizes.tokens)))
    for name, check in (("overflow", _overflow), ("out of memory", _out_of_memory), ("two threads", _two_threads)):
        with bench.report.attempt(name):
            check(bench, tokens)


def _overflow(bench: Bench, tokens: pa.Table) -> None:
    """Cells with one gene overflow in float16, those alone, and are computed again in float32."""
    genes = tokens[GENE].to_pylist()
    victim = genes[len(genes) // 2][1]
    has_victim = np.array([victim in cell for cell in genes])
    network = overflowing(bench.checkpoint, victim)
    embedder = _embedder(bench, network)
    found = embed(embedder, tokens)
    expected = embed(Embedder(network, device=str(bench.device), precision="float32"), tokens)
    overflowed = int(embedder.describe()["cells_overflowed"])
    of_float16 = int(has_victim.sum()) if bench.sizes.precision == "float16" else 0
    bench.report.check(
        "overflow: cells wrongly computed again or not", abs(overflowed - of_float16), 0,
        overflowed=overflowed, cells=len(genes),
    )  # fmt: skip
    error = _error(found[has_victim], expected[has_victim])
    bench.report.check("overflow: 1 - cosine of these to float32", error, LIMITS["float32"])


def overflowing(checkpoint: Checkpoint, gene: int) -> Checkpoint:
    """The same network, but in float16 the first hidden layer overflows for one gene.

    The first component of the stream is that gene's alone: nothing else writes it, and the hidden layer amplifies it.
    """
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    layer = "transformer_encoder.layers.0"
    for name in ("encoder.enc_norm.bias", "value_encoder.norm.weight", "value_encoder.norm.bias"):
        tensors[name][0] = 0
    for name in ("weight", "bias"):
        tensors[f"{layer}.self_attn.out_proj.{name}"][0] = 0
    tensors[EMBEDDING_TABLE][:, 0] = 0
    tensors[EMBEDDING_TABLE][gene, 0] = 100
    tensors[f"{layer}.linear1.weight"][:, 0] = _LARGE_WEIGHT
    return replace(checkpoint, tensors=tensors)


def _out_of_memory(bench: Bench, tokens: pa.Table) -> None:
    """The budget is halved until microbatches fit, and the embeddings are the same."""
    budget = bench.sizes.tokens
    embedder = Embedder(
        bench.checkpoint, device=str(bench.device), precision=bench.sizes.precision, tokens_per_microbatch=budget
    )
    expected = embed(embedder, tokens)
    with memory_for(embedder, 2 * budget // 5, bench.device):
        found = embed(embedder, tokens)
    left = int(embedder.describe()["tokens_per_microbatch"])
    bench.report.check("out of memory: budget, of what it was", left / budget, 0.5, budget=left)
    error = _error(found, expected)
    bench.report.check("out of memory: 1 - cosine to what it was", error, LIMITS[bench.sizes.precision])


def _two_threads(bench: Bench, tokens: pa.Table) -> None:
    """Threads that call at once get what they get one after the other."""
    embedder = _embedder(bench, bench.checkpoint)
    size = -(-len(tokens) // _TABLES)
    tables = [tokens.slice(start, size) for start in range(0, len(tokens), size)]
    expected = [embed(embedder, table) for table in tables]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(lambda table: embed(embedder, table), tables))
    error = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    bench.report.check("two threads: largest difference to one", error, 0)


def _embedder(bench: Bench, checkpoint: Checkpoint) -> Embedder:
    return Embedder(checkpoint, device=str(bench.device), precision=bench.sizes.precision)


def _error(found: Float32Matrix, expected: Float32Matrix) -> float:
    return cosine_error(torch.tensor(found), torch.tensor(expected))
