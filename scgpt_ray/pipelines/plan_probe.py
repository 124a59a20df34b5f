"""A probe of seconds: some cells of an atlas are read, tokenized, embedded and written, as a run would do it.

Shapes: N sampled cells.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.atlas.anndata_file import write_ones
from scgpt_ray.atlas.genes import GeneMap
from scgpt_ray.atlas.plan import Partition
from scgpt_ray.atlas.source import Source
from scgpt_ray.config import PlanSettings
from scgpt_ray.errors import WorkerError
from scgpt_ray.network.checkpoint import Checkpoint
from scgpt_ray.network.embedder import Embedder, set_threads
from scgpt_ray.network.encoder import Pooling
from scgpt_ray.parts.parts import write_part
from scgpt_ray.schema import BIN, JOINID, N_GENES, Int64Array, embedded
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import TokenRules, tokenize
from scgpt_ray.tokenizer.vocabulary import SPECIALS, Vocabulary

_PIECES = 8
_CELLS = 2048
_SECONDS = 8.0  # of the network, after it is warm
_CELLS_AT_ONCE = 16

_ACTOR = {
    "device": "cpu", "device_name": "AVX512", "precision": "float32",
    "attention": "scaled_dot_product_attention, cell by cell", "elementwise": "plain",
}  # fmt: skip
"""What a footer says of an actor, about as long as of any."""

_FEW_CELLS = 4
_FEW_GENES = 64
_EMBED = "import json, sys, scgpt_ray; scgpt_ray.embed(**json.loads(sys.argv[1]))"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set for the driver of a job; a Ray that is started in one would take its files from the cluster."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What reading some cells has shown.

    Attributes:
        tokens: TOKENS of the cells, in random order.
        lengths_N: Tokens of each, int64 [N]; 0 for a cell without counts.
        read_s: Seconds to read and tokenize a cell.
        write_s: Seconds to write one.
        part_bytes: Bytes of a part: those of each, and of each cell.
    """

    tokens: pa.Table
    lengths_N: Int64Array
    read_s: float
    write_s: float
    part_bytes: tuple[float, float]

    @classmethod
    def of(
        cls,
        source: Source,
        joinids: Int64Array,
        genes: GeneMap,
        checkpoint: Checkpoint,
        rules: TokenRules,
        per_part: int,
    ) -> "Sample":
        """Read up to 2,048 cells in eight runs, and write them as a part.

        Args:
            source: The atlas.
            joinids: The selected cells, sorted.
            genes: Tokens of its genes.
            checkpoint: The network, for its vocabulary and width.
            rules: Token rules.
            per_part: Cells of a part.
        """
        tokens_V = genes.lookup()
        runs = [Partition.of(number, run) for number, run in enumerate(_runs(joinids))]
        read = [pa.concat_tables(source.read(run, tokens_V)) for run in runs[:1]]  # the first read opens the atlas
        tokenize(read[0], checkpoint.vocabulary, rules)  # and compiles
        with _timed() as reading:
            tables = [
                tokenize(cells, checkpoint.vocabulary, rules) for run in runs for cells in source.read(run, tokens_V)
            ]
        tokens = pa.concat_tables(tables)
        n = len(tokens)
        size = min(per_part, max(1, n // 2))
        with _timed() as writing:
            # Parts of this size and of twice the size, which tell what a part takes from what its cells take.
            single, double = (
                [
                    _part_bytes(tokens.slice(start, width), checkpoint.architecture.embsize)
                    for start in range(0, min(n - width + 1, _PIECES * width), width)
                ]
                for width in (size, min(2 * size, n))
            )
        per_cell = (np.mean(double) - np.mean(single)) / max(1, min(2 * size, n) - size)
        lengths_N = np.asarray(pc.list_value_length(tokens[BIN]).to_numpy(), np.int64)
        order = np.random.default_rng(0).permutation(n)
        return cls(
            tokens=tokens.take(pa.array(order)),
            lengths_N=lengths_N[order],
            read_s=reading[0] / n,
            write_s=writing[0] / (size * len(single) + 2 * size * len(double)),
            part_bytes=(float(np.mean(single) - per_cell * size), float(per_cell)),
        )


def start_s(settings: PlanSettings, vocabulary: Vocabulary, *, on_ray: bool, on_gpu: bool) -> float:
    """Seconds that a run takes apart from its cells: processes and libraries, Ray, the network, the MLflow store.

    A few cells are embedded by another process on this machine, in partitions of one; a local Ray stands for that
    of a cluster.

    Args:
        settings: The request.
        vocabulary: Names of genes.
        on_ray: Whether the run is on Ray.
        on_gpu: Whether its actors have GPUs and this machine has one; else a CPU is used.

    Raises:
        WorkerError: If these cells cannot be embedded.
    """
    genes = [name for name in vocabulary.tokens if name not in SPECIALS][:_FEW_GENES]
    with tempfile.TemporaryDirectory() as place:
        options = {
            "atlas": write_ones(Path(place), _FEW_CELLS, genes),
            "checkpoint": settings.checkpoint,
            "output": f"{place}/embeddings",
            "tracking": place,
            "storage": settings.storage,
            "cells_per_partition": 1,
            "executor": "ray" if on_ray else "serial",
            "device": "gpu" if on_gpu else "cpu",
            "actors": settings.actors,
        }
        alone = {name: value for name, value in os.environ.items() if name != _JOB} | {"RAY_ADDRESS": "local"}
        with _timed() as running:
            done = subprocess.run(
                [sys.executable, "-c", _EMBED, json.dumps(options)], env=alone, capture_output=True, text=True
            )
    if done.returncode:
        last = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        raise WorkerError(f"a few cells could not be embedded to see how long that takes: {last}")
    return running[0]


def network_rate(
    checkpoint: Checkpoint, sample: Sample, device: str, precision: str, pooling: Pooling, threads: int
) -> float:
    """Tokens per second of the network on a device of this machine.

    Args:
        checkpoint: The network.
        sample: Cells to embed; as many as some seconds allow.
        device: cpu or cuda.
        precision: Its arithmetic.
        pooling: What it computes.
        threads: CPU threads.
    """
    set_threads(threads)
    embedder = Embedder(checkpoint, device=device, precision=precision, pooling=pooling)
    embedder(sample.tokens.slice(0, _CELLS_AT_ONCE))
    seconds, done, n = 0.0, 0, _CELLS_AT_ONCE
    while seconds < _SECONDS and done < len(sample.tokens):
        piece = sample.tokens.slice(done, n)
        with _timed() as embedding:
            embedder(piece)
        seconds, done = seconds + embedding[0], done + len(piece)
        n = min(2 * n, _CELLS)
    return float(sample.lengths_N[:done].sum()) / seconds


def _runs(joinids: Int64Array) -> list[Int64Array]:
    """Up to eight runs of cells, evenly spaced; all cells, if there are no more."""
    if len(joinids) <= _CELLS:
        return [joinids]
    length = _CELLS // _PIECES
    starts = np.linspace(0, len(joinids) - length, _PIECES).astype(int)
    return [joinids[start : start + length] for start in starts]


def _part_bytes(tokens: pa.Table, dimension: int) -> int:
    """Size of the part of some cells, with random vectors, which do not compress either."""
    vectors_ND = np.random.default_rng(0).standard_normal((len(tokens), dimension)).astype(np.float32)
    cells = embedded(tokens, vectors_ND, tokens[N_GENES].to_numpy() == 0)
    with tempfile.TemporaryDirectory() as place:
        folder = Folder.at(place)
        partition = Partition.of(0, tokens[JOINID].to_numpy())
        _, n_bytes = write_part(folder, cells, partition, fingerprint="0" * 64, n_tokens=0, actor=_ACTOR)
        return n_bytes


@contextmanager
def _timed() -> Iterator[list[float]]:
    """A list that holds the seconds of the block after it."""
    seconds: list[float] = []
    began = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - began)
