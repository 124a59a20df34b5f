import hashlib
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.atlas import plan
from scgpt_ray.atlas.plan import Partition, cut, digest_joinids
from scgpt_ray.errors import WorkerError


def ids(*values):
    return np.array(values, np.int64)


def members(joinids, partition):
    return joinids[(joinids >= partition.first) & (joinids <= partition.last)]


def test_no_cells_make_no_partitions():
    assert cut(ids(), 100) == ()


def test_one_cell():
    assert cut(ids(7), 100) == (Partition(0, 7, 7, 1, digest_joinids(ids(7))),)


def test_small_partitions_stay_inside_their_tile_and_are_near_equal():
    parts = cut(np.arange(10), 3, tile=8)
    assert [(part.first, part.last) for part in parts] == [(0, 1), (2, 4), (5, 7), (8, 9)]


def test_large_partitions_end_with_a_tile_and_are_near_equal():
    parts = cut(np.arange(10 * 4), 16, tile=4)
    assert [part.n_cells for part in parts] == [16, 16, 8]
    assert [part.n_cells for part in cut(np.arange(12 * 4), 20, tile=4)] == [16, 16, 16]


def test_a_partition_of_exactly_one_tile():
    assert [part.n_cells for part in cut(np.arange(9), 4, tile=4)] == [4, 4, 1]


def test_huge_gaps():
    joinids = ids(0, 2**40, 2**62)
    assert [part.first for part in cut(joinids, 2, tile=4)] == joinids.tolist()
    assert [(part.first, part.n_cells) for part in cut(joinids, 4, tile=4)] == [(0, 3)]


@pytest.mark.parametrize("block", [1, 2, plan._BLOCK])
def test_joinids_must_be_sorted_and_unique(block, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK", block)
    for wrong in (ids(2, 1), ids(1, 1), ids(1, 2, 3, 3)):
        with pytest.raises(AssertionError):
            cut(wrong, 2)


@given(joinids=st.sets(st.integers(0, 300)), size=st.integers(1, 60), tile=st.integers(1, 40), block=st.integers(1, 90))
def test_blocks_do_not_matter(joinids, size, tile, block):
    joinids = np.array(sorted(joinids), np.int64)
    expected = cut(joinids, size, tile=tile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_BLOCK", block)
        assert cut(joinids, size, tile=tile) == expected


@given(
    joinids=st.sets(st.integers(0, 300)),
    size=st.integers(1, 60),
    tile=st.integers(1, 40),
)
def test_every_cell_is_in_exactly_one_partition(joinids, size, tile):
    joinids = np.array(sorted(joinids), np.int64)
    parts = cut(joinids, size, tile=tile)
    pieces = [members(joinids, part) for part in parts]
    assert np.concatenate([*pieces, ids()]).tolist() == joinids.tolist()
    assert [part.number for part in parts] == list(range(len(parts)))
    for part, piece in zip(parts, pieces, strict=True):
        assert (part.first, part.last, part.n_cells) == (piece[0], piece[-1], len(piece))
        assert part.n_cells <= size
        assert part.digest == digest_joinids(piece)
        if size < tile:
            assert part.first // tile == part.last // tile
    if size >= tile:
        for before, after in pairwise(parts):
            assert before.last // tile < after.first // tile


@given(n_tiles=st.integers(1, 60), size=st.integers(1, 60), tile=st.integers(1, 20))
def test_contiguous_cells_make_near_equal_partitions(n_tiles, size, tile):
    sizes = [part.n_cells for part in cut(np.arange(n_tiles * tile), size, tile=tile)]
    if size >= tile:
        fewest = -(-n_tiles // (size // tile))
        assert len(sizes) == fewest
        assert max(sizes) == -(-n_tiles // fewest) * tile
    else:
        assert len(sizes) == n_tiles * -(-tile // size)
        assert max(sizes) - min(sizes) <= 1


def test_a_partition_requires_its_cells():
    [part] = cut(ids(1, 5, 9), 10)
    part.require(ids(1, 5, 9), "atlas")
    for changed in (ids(1, 5), ids(1, 6, 9), ids()):
        with pytest.raises(WorkerError, match="atlas: the atlas has changed since the plan was made: partition 0"):
            part.require(changed, "atlas")


def test_the_digest_is_of_little_endian_int64():
    assert digest_joinids(ids(0, 1, 2)) == hashlib.sha256(struct.pack("<3q", 0, 1, 2)).hexdigest()[:16]
