"""Cells drawn from finished embeddings: several samples in one pass over the parts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from scgpt_ray.parts.parts import PARTS, read_part, vectors_of
from scgpt_ray.pipelines.executor import Executor
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID, Float32Matrix, Int64Array
from scgpt_ray.storage import Folder

Sampled = tuple[Int64Array, Float32Matrix]
"""ids int64 [n] and vectors float32 [n, d], in the order of the parts."""


class Draw(NamedTuple):
    """A sample: the number of cells, and the seed that it is a function of."""

    n: int
    seed: int


def samples(source: Folder, manifest: Manifest, draws: Sequence[Draw]) -> list[Sampled]:
    """Draw cells with an embedding uniformly (all, if there are fewer than n), once per draw.

    Each part that holds a drawn cell is read once; the samples and one part are in memory.
    """
    filling = [_Filling(manifest, *draw) for draw in draws]
    start = 0
    for name, n_cells in manifest.parts.items():
        here = [one.rows(start, start + n_cells) for one in filling]
        if any(map(len, here)):
            table = read_part(source.folder(PARTS), name, [JOINID, EMBEDDING])
            for one, rows in zip(filling, here, strict=True):
                one.add(*vectors_of(table.take(pa.array(rows))))
        start += n_cells
    return [one.sampled() for one in filling]


def samples_of(executor: Executor, source: Folder, manifest: Manifest, draws: Sequence[Draw]) -> list[Sampled]:
    """Call `samples` in a task; for few cells."""
    [found] = executor.tasks(samples, [(source, manifest, draws)])
    return list(found)


class _Filling:
    """A sample that is filled part by part.

    Cells without an embedding are dropped when they are read: more are drawn, and thinned afterwards. With six standard
    deviations more than needed on average, fewer than n have an embedding with probability 1e-9.
    """

    def __init__(self, manifest: Manifest, n: int, seed: int) -> None:
        total = sum(manifest.parts.values())
        share = 1 - manifest.n_empty / manifest.n_cells
        n_drawn = int(min(n + manifest.n_empty, total, (n + 6 * math.sqrt(n) + 36) / share)) if n else 0
        self._n, self._random = n, np.random.default_rng(seed)
        self._drawn = np.sort(self._random.choice(total, n_drawn, replace=False, shuffle=False))
        self._ids = np.empty(n_drawn, np.int64)
        self._vectors = np.empty((n_drawn, manifest.dimension), np.float32)
        self._filled = 0

    def rows(self, start: int, end: int) -> Int64Array:
        """Drawn rows of a part, whose first row of all is `start`."""
        first, last = np.searchsorted(self._drawn, [start, end])
        return self._drawn[first:last] - start

    def add(self, ids_N: Int64Array, vectors_ND: Float32Matrix) -> None:
        """Add drawn cells that have an embedding."""
        place = slice(self._filled, self._filled + len(ids_N))
        self._ids[place], self._vectors[place] = ids_N, vectors_ND
        self._filled = place.stop

    def sampled(self) -> Sampled:
        """The sample, once all parts are read."""
        if self._filled <= self._n:
            return self._ids[: self._filled], self._vectors[: self._filled]
        kept = np.sort(self._random.permutation(self._filled)[: self._n])
        return self._ids[kept], self._vectors[kept]
