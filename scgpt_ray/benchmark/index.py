"""The stage `index`: how fast vectors are added to a shard, and queries answered."""

from functools import partial

import numpy as np

from scgpt_ray.benchmark.figures import Figure, median_seconds, seconds_of
from scgpt_ray.index.factory import choose_factory, training_size
from scgpt_ray.index.search import search, set_threads
from scgpt_ray.index.shard import build_shard, open_shard
from scgpt_ray.index.template import train
from scgpt_ray.schema import Float32Matrix

VECTORS = 50_000
WIDTH = 512
QUERIES = 256
NEIGHBOURS = 10
NPROBE = 32
_TYPES = 100
_SPREAD = 0.5


def benchmark_index(n_vectors: int | None, threads: int | None, seconds: float) -> list[Figure]:
    """Measure training, adding and searching, with the factory that `index` would choose.

    Args:
        n_vectors: Vectors of the index.
        threads: Of faiss; None for one, as a task has.
        seconds: For the runs of searching.
    """
    set_threads(threads or 1)
    vectors_ND = made_up_vectors(n_vectors or VECTORS)
    factory = choose_factory(len(vectors_ND), WIDTH, None)
    sample_ND = vectors_ND[: training_size(factory, len(vectors_ND), WIDTH)]
    template: list[bytes] = []
    train_s = seconds_of(lambda: template.append(train(sample_ND, factory, seed=0)))
    blocks = [(np.arange(len(vectors_ND)), vectors_ND)]
    add_s = median_seconds(partial(build_shard, template[0], blocks), 0)
    shard = open_shard(build_shard(template[0], blocks))
    search_s = median_seconds(partial(search, shard, vectors_ND[:QUERIES], NEIGHBOURS, NPROBE), seconds)
    setting: dict[str, str | int | float] = {
        "factory": factory, "vectors": len(vectors_ND), "width": WIDTH,
        "k": NEIGHBOURS, "nprobe": NPROBE, "threads": threads or 1,
    }  # fmt: skip
    return [
        Figure("index", "training", train_s, "s", setting),
        Figure("index", "adding", len(vectors_ND) / add_s, "vectors/s", setting),
        Figure("index", "searching", min(QUERIES, len(vectors_ND)) / search_s, "queries/s", setting),
    ]


def made_up_vectors(n: int, seed: int = 0) -> Float32Matrix:
    """Unit vectors in clouds around the directions of made-up cell types, float32 [n, WIDTH]."""
    rng = np.random.default_rng(seed)
    types = rng.standard_normal((_TYPES, WIDTH), np.float32)
    vectors_ND = types[rng.integers(0, _TYPES, n)] + _SPREAD * rng.standard_normal((n, WIDTH), np.float32)
    return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True))
