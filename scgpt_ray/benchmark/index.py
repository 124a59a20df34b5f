"""The stage `index`: build and search an index of many synthetic embeddings, and compare it with upstream's factory.

The vectors are never all in memory: they are generated block by block and added to the shards, which store them in
half precision. The true neighbours are found in the same pass; upstream's index is filled from the stored vectors.
"""

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from scgpt_ray.benchmark.measurement import Figure, Setting, peak_bytes, private_bytes
from scgpt_ray.benchmark.synthetic_embeddings import NEIGHBOURHOOD, Growth, contrast, intrinsic_dimension
from scgpt_ray.config import BenchmarkSettings
from scgpt_ray.errors import ConfigError, OutputError
from scgpt_ray.index.description import CENTRE
from scgpt_ray.index.factory import (
    EXACT_UP_TO,
    choose_factory,
    default_shards,
    empty_index,
    n_lists,
    training_size,
    with_lists,
)
from scgpt_ray.index.recall import RecallSample, Search, Truth, choose_params, cost_model, recall_at, speed
from scgpt_ray.index.search import Neighbors, candidates, set_threads
from scgpt_ray.index.searcher import CHOSEN_K, Searcher, SearchParams
from scgpt_ray.index.shard import build_shard, open_faiss
from scgpt_ray.index.template import centre_of, train
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS, read_vectors
from scgpt_ray.records import ShardDescription
from scgpt_ray.schema import Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

VECTORS = 50_000
TARGET_RECALL = 0.98
UPSTREAM_FACTORY = "PCA64,IVF{}_HNSW32,PQ16"
"""Factory of scGPT's tutorial on building an atlas index, which searches by L2 with nprobe 128."""

_UPSTREAM_LISTS, _UPSTREAM_NPROBE = 16_384, 128
_BASE = 20_000  # maximum number of base cells, whose neighbourhoods are found by exhaustive search
_QUERIES, _EVALUATED = 10_000, 500
_K = 50
_T = TypeVar("_T")
_SAMPLE_BYTES = 1_400_000_000
_MEASURED = 100_000
_PROBED = 500
_SYNTHETIC_BASE = 5_000
_WIDTH, _TYPES, _PLANE = 512, 100, 24


@dataclass
class _Clock:
    """Seconds spent in named parts of the work."""

    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, blocks: Iterable[_T]) -> Iterator[_T]:
        """Count the time to make each block."""
        iterator = iter(blocks)
        while True:
            started = time.perf_counter()
            block = next(iterator, None)
            self.add(name, started)
            if block is None:
                return
            yield block

    def add(self, name: str, started: float) -> None:
        """Count the time since `started`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def measure(settings: BenchmarkSettings) -> list[Figure]:
    """Generate embeddings, index them, and search; also in upstream's index of the same vectors, if asked for.

    Raises:
        InputError: If there are too few embeddings, they cannot be read, or the disk is too small.
    """
    n, threads, embeddings = settings.cells or VECTORS, settings.threads or 1, settings.embeddings_from
    set_threads(threads)
    base_BD = base_of(Folder.at(embeddings)) if embeddings else synthetic_vectors(_SYNTHETIC_BASE)
    growth = Growth.of(base_BD)
    setting: Setting = {
        "vectors": n, "width": base_BD.shape[1], "base": len(base_BD),
        "from": embeddings or "synthetic types in planes", "threads": threads,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="scgpt-ray-benchmark-") as scratch:
        _require_room(Path(scratch), n, base_BD.shape[1])
        trial = _Trial(growth, n, Folder.at(scratch))
        found = [*_structure(growth, n, setting), *trial.ours(setting)]
        return [*found, *trial.upstream(setting)] if settings.against else found


def _require_room(place: Path, n: int, d: int) -> None:
    needed = n * (2 * d + 128) + 2**28
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            f"{place} has {free:,} bytes free", expected=f"{needed:,}", remedy="set TMPDIR, or use fewer --cells"
        )


def base_of(folder: Folder) -> Float32Matrix:
    """Distinct unit vectors of the first cells of an output folder of `embed`, float32 [B, d].

    Raises:
        InputError: If the run is not finished, or has too few cells.
    """
    found: list[Float32Matrix] = []
    for name in require_manifest(folder).parts:
        found.append(read_vectors(folder.folder(PARTS), name)[1])
        if sum(map(len, found)) >= _BASE:
            break
    base_BD = np.unique(np.concatenate(found)[:_BASE], axis=0)
    if len(base_BD) <= 2 * NEIGHBOURHOOD:
        raise ConfigError(
            f"--embeddings-from {folder.uri} has {len(base_BD)} distinct cells",
            expected=f"more than {2 * NEIGHBOURHOOD}, better thousands",
            remedy="embed more cells",
        )
    return base_BD


def synthetic_vectors(n: int) -> Float32Matrix:
    """Synthetic unit vectors, float32 [n, 512]: 100 types, each in a random 24-dimensional subspace, with noise."""
    rng = np.random.default_rng(0)
    types_TD = rng.standard_normal((_TYPES, _WIDTH), np.float32)
    planes_TPD = rng.standard_normal((_TYPES, _PLANE, _WIDTH), np.float32) / np.float32(np.sqrt(_PLANE))
    type_N = rng.integers(0, _TYPES, n)
    vectors_ND = 2 * types_TD.mean(axis=0) * np.sqrt(_TYPES) + types_TD[type_N]
    for number in range(_TYPES):
        rows = type_N == number
        vectors_ND[rows] += rng.standard_normal((int(rows.sum()), _PLANE), np.float32) @ planes_TPD[number] / 2
    vectors_ND += np.float32(0.1) * rng.standard_normal((n, _WIDTH), np.float32)
    return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), np.float32)


def _structure(growth: Growth, n: int, setting: Setting) -> Iterator[Figure]:
    grown_ND = np.concatenate(list(growth.blocks(min(n, _MEASURED), seed=0)))
    for name, vectors_ND in (("base", growth.base_BD), ("grown", grown_ND)):
        rows = np.random.default_rng(0).choice(len(vectors_ND), min(_PROBED, len(vectors_ND)), replace=False)
        dimension, ratio = intrinsic_dimension(vectors_ND, rows), contrast(vectors_ND, rows)
        yield Figure("index", f"{name}: local intrinsic dimension", dimension, "", setting)
        yield Figure("index", f"{name}: distance of 10th neighbour / of a random cell", ratio, "", setting)


@dataclass
class _Trial:
    """Two indexes of the same generated vectors."""

    growth: Growth
    n: int
    folder: Folder
    clock: _Clock = field(default_factory=_Clock)
    shards: list[ShardDescription] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queries_QD = np.concatenate(list(self.growth.blocks(min(_QUERIES, self.n), seed=1)))
        self.truth = Truth(self.queries_QD[:_EVALUATED], _K)

    def ours(self, setting: Setting) -> Iterator[Figure]:
        """Build as `index` does, choose the search parameters, and search."""
        d = self.growth.base_BD.shape[1]
        n_shards = default_shards(self.n)
        # For fewer vectors `index` chooses an exact index.
        factory = choose_factory(max(self.n, EXACT_UP_TO + 1), d, None, n_shards, TARGET_RECALL)
        factory = with_lists(factory, self.n)
        self._build(factory, n_shards)
        nlist = n_lists(empty_index(factory, d))
        searcher = Searcher(self.folder, self.shards)
        evaluated_QD = self.queries_QD[:_EVALUATED]
        recall_sample = RecallSample(np.full(len(evaluated_QD), -2), evaluated_QD, *self.truth.neighbors)
        cost = cost_model(factory, d, self.n, nlist)
        chosen, _ = choose_params(recall_sample, searcher.search, nlist, cost, TARGET_RECALL)
        named = {**setting, "factory": factory, "shards": n_shards, "nprobe": chosen.nprobe, "rerank": chosen.rerank}
        yield from self._built("", named, [shard.name for shard in self.shards])
        yield Figure("index", "peak memory", peak_bytes() / 1e9, "GB", named)
        yield Figure("index", "private memory after building", private_bytes() / 1e9, "GB", named)
        yield from self._searched(named, searcher.search, chosen.params)
        del searcher
        yield from self._cold(named, chosen.params)

    def _cold(self, setting: Setting, params: SearchParams) -> Iterator[Figure]:
        """Search when the system holds nothing of the files of the index in memory."""
        for what, k, queries_QD in (
            ("opening and one query, k 10", CHOSEN_K, self.queries_QD[:1]),
            (f"opening and {len(self.queries_QD):,} queries, k {_K}", _K, self.queries_QD),
        ):
            forget(self.folder.path)
            started = time.perf_counter()
            _search_all(Searcher(self.folder, self.shards).search, queries_QD, k, params)
            yield Figure("index", f"files not cached: {what}", time.perf_counter() - started, "s", setting)

    def _build(self, factory: str, n_shards: int) -> None:
        """Train, and fill the shards from one stream; generating and searching its blocks is not counted."""
        d = self.growth.base_BD.shape[1]
        rows = training_size(factory, self.n, d, _SAMPLE_BYTES)
        sample_ND = np.concatenate(list(self.growth.blocks(rows, seed=0)))
        started = time.perf_counter()
        template = train(sample_ND, factory, seed=0)
        self.clock.add("train", started)
        centre_D = centre_of(sample_ND)
        del sample_ND
        with self.folder.staged(CENTRE) as path, path.open("wb") as stream:
            np.save(stream, centre_D)
        started, first = time.perf_counter(), 0
        for number, piece in enumerate(np.array_split(np.arange(self.n), n_shards)):
            shard = ShardDescription.of(number, len(piece), is_exact=False)
            grown = _numbered(self.growth.blocks(len(piece), seed=2 + number), first)
            blocks = self.clock.timed("grow", self.truth.seen(grown))
            build_shard(template, blocks, self.folder, shard, centre_D)
            self.shards.append(shard)
            first += len(piece)
        self.clock.add("add", started)
        self.clock.seconds["add"] -= self.clock.seconds["grow"]

    def upstream(self, setting: Setting) -> Iterator[Figure]:
        """Build upstream's index of the same vectors, in one piece, and search it."""
        d = self.growth.base_BD.shape[1]
        factory = with_lists(UPSTREAM_FACTORY.format(_UPSTREAM_LISTS), self.n)
        rows = training_size(factory, self.n, d, _SAMPLE_BYTES)
        sample_ND = np.concatenate(list(self.growth.blocks(rows, seed=0)))
        self.clock.seconds.clear()
        started = time.perf_counter()
        template = train(sample_ND, factory, seed=0)
        self.clock.add("train", started)
        del sample_ND
        opened = Searcher(self.folder, self.shards).shards
        blocks = (
            shard.vectors(np.arange(start, min(start + 16_384, len(shard.ids_N))))
            for shard in opened
            for start in range(0, len(shard.ids_N), 16_384)
        )
        name = "upstream.faiss"
        # Without stored vectors, as upstream.
        whole = ShardDescription(name, self.n, "", "upstream-ids.npy", None)
        started = time.perf_counter()
        build_shard(template, _numbered(self.clock.timed("read", blocks)), self.folder, whole, np.zeros(d, np.float32))
        self.clock.add("add", started)
        self.clock.seconds["add"] -= self.clock.seconds["read"]
        index = open_faiss(self.folder.path / name)
        named = {**setting, "factory": factory, "nprobe": _UPSTREAM_NPROBE, "rerank": 0}
        yield from self._built("upstream: ", named, [name])

        def search(queries_QD: Float32Matrix, k: int, params: SearchParams) -> Neighbors:
            ids_QK = candidates(index, queries_QD, k, params.nprobe)
            return ids_QK, np.zeros(ids_QK.shape, np.float32)

        yield from self._searched(named, search, SearchParams(_UPSTREAM_NPROBE, 0), "upstream: ")

    def _built(self, prefix: str, setting: Setting, names: list[str]) -> Iterator[Figure]:
        seconds = self.clock.seconds
        million = self.n / 1e6
        n_bytes = sum(self.folder.size(name) or 0 for name in names)
        yield Figure("index", f"{prefix}training", seconds["train"], "s", setting)
        yield Figure("index", f"{prefix}adding a million", seconds["add"] / million, "s", setting)
        yield Figure(
            "index", f"{prefix}building a million", (seconds["train"] + seconds["add"]) / million, "s", setting
        )
        yield Figure(
            "index", f"{prefix}memory of a cell: code, id, its share of centroids", n_bytes / self.n, "B", setting
        )

    def _searched(self, setting: Setting, search: Search, params: SearchParams, prefix: str = "") -> Iterator[Figure]:
        evaluated = self.queries_QD[:_EVALUATED]
        for k in (CHOSEN_K, _K):
            found_QK, _ = search(evaluated, k, params)
            recall = recall_at(found_QK, self.truth.neighbors[0][:, :k])
            yield Figure("index", f"{prefix}recall@{k}", recall, "", setting)
        started = time.perf_counter()
        _search_all(search, self.queries_QD, _K, params)
        seconds = time.perf_counter() - started
        yield Figure("index", f"{prefix}{len(self.queries_QD):,} queries, k {_K}", seconds, "s", setting)
        single = speed(evaluated, search, params)
        yield Figure("index", f"{prefix}one query, k 10, median", single["p50_ms"], "ms", setting)
        yield Figure("index", f"{prefix}one query, k 10, 99th percentile", single["p99_ms"], "ms", setting)


def _search_all(search: Search, queries_QD: Float32Matrix, k: int, params: SearchParams) -> None:
    for start in range(0, len(queries_QD), 2048):
        search(queries_QD[start : start + 2048], k, params)


def forget(place: Path) -> None:
    """Have the system drop what it caches of the files in a folder that no process has mapped."""
    gc.collect()
    for path in place.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _numbered(blocks: Iterable[Float32Matrix], first: int = 0) -> Iterator[tuple[Int64Array, Float32Matrix]]:
    for block_ND in blocks:
        yield np.arange(first, first + len(block_ND)), block_ND
        first += len(block_ND)
