"""Candidates and their vectors."""

from dataclasses import replace

import numpy as np
import pytest

from scgpt_ray.index.opened_shard import Shard
from scgpt_ray.index.searcher import SearchParams
from scgpt_ray.index.shard import HALF
from scgpt_ray.records import ShardDescription
from scgpt_ray.storage import Folder


@pytest.mark.parametrize(
    ("rerank", "k", "expected"),
    [
        (40, 10, 40),
        (40, 50, 200),
        (45, 11, 50),  # 49.5
        (40, 1, 40),
        (100, 50, 500),
        (640, 50, 640),  # ten per neighbour are enough for more than ten
        (640, 100, 1000),
        (5, 10, 20),  # two per neighbour at least
        (0, 300, 600),
    ],
)
def test_candidates_per_neighbour(rerank, k, expected):
    assert SearchParams(1, rerank).n_candidates(k) == expected


@pytest.mark.parametrize("d", [2, 13, 128])
def test_halves_are_what_numpy_makes_of_them(d, tmp_path):
    halves_ND = np.random.default_rng(0).standard_normal((50, d)).astype(HALF)
    halves_ND[0, 0], halves_ND[1, 1], halves_ND[2, 0], halves_ND[3, 0] = 0, 6e-8, -65504, np.inf
    centre_D = np.linspace(0, 1, d, dtype=np.float32)
    description = ShardDescription.of(0, 50, is_exact=False)
    shard = Shard(Folder.at(tmp_path), description, None, np.arange(50), halves_ND, centre_D)
    for rows in ([], [7], [3, 3, 0, 49, 1, 2]):
        rows = np.array(rows, np.int64)
        np.testing.assert_array_equal(shard.vectors(rows), halves_ND[rows].astype(np.float32) + centre_D)


def test_rows_of_cells(tmp_path):
    description = ShardDescription.of(0, 4, is_exact=False)
    shard = Shard(Folder.at(tmp_path), description, None, np.array([2, 5, 7, 9]), None, np.zeros(2, np.float32))
    assert shard.rows_of(np.array([9, 1, 2, 6, 100])).tolist() == [3, 0]
    left = replace(shard, left_N=np.array([False, True, True, True]))
    assert left.rows_of(np.array([9, 1, 2])).tolist() == [3]
    assert replace(shard, ids_N=np.empty(0, np.int64)).rows_of(np.array([9])).tolist() == []
