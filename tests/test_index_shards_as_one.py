"""Cells divided into shards, and shards among processes, are searched as one shard with all cells."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index import rounds
from scgpt_ray.index.assigned import assign, find_assigned
from scgpt_ray.index.codes import Codes
from scgpt_ray.index.description import CENTRE
from scgpt_ray.index.factory import empty_index, inverted_lists
from scgpt_ray.index.merged_lists import can_merge, merge_lists, packed_in_blocks, unpacked
from scgpt_ray.index.neighbor_filter import NeighborFilter
from scgpt_ray.index.opened_shard import Shard
from scgpt_ray.index.removal import keep_only
from scgpt_ray.index.rounds import nearest
from scgpt_ray.index.search import NONE
from scgpt_ray.index.searcher import Searcher, SearchParams
from scgpt_ray.index.shard import build_shard
from scgpt_ray.index.template import centre_of, open_template, train
from scgpt_ray.records import ShardDescription
from scgpt_ray.storage import Folder

MERGED = ["PCAR16,IVF8,PQ8x4fsr", "PCAR16,IVF8_HNSW32,PQ8x4fs", "PCAR14,IVF8,PQ7x4fsr", "PCAR16,IVF8,PQ8x4fsr_64"]
OTHERS = ["IVF8,SQ8", "IVF8,Flat", "PCAR16,IVF8,PQ8np"]
ROUNDED = ["RR32,IVF8,RaBitQ", "RR32,IVF8,RaBitQfs"]
"""Their codes have numbers whose last bit depends on the place of a vector in its block, and so on its shard."""
NO_FILTERS = ["PQ8np"]
N, D, K = 1500, 32, 10


def unit(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def cells(n, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, D)))


VECTORS, IDS = cells(N), np.arange(N) * 3 + 10**10
VECTORS[1000:1060] = VECTORS[:60]  # the same cell twice is common in an atlas
VECTORS[1100:1180] = VECTORS[7]
QUERIES = np.concatenate([VECTORS[:30], cells(30, seed=1)])
PARAMS = SearchParams(3, 60)


def divided(random, n_shards):
    """Rows of each shard: interleaved, or one after the other; one of them is empty."""
    of_row = random.integers(n_shards, size=N) if n_shards % 2 else np.arange(N) * n_shards // N
    groups = [np.flatnonzero(of_row == number) for number in range(n_shards)]
    return [*groups[:1], np.empty(0, np.int64), *groups[1:]]


def write(folder, factory, groups):
    template = train(VECTORS, factory, seed=0)
    with folder.staged(CENTRE) as path, path.open("wb") as stream:
        np.save(stream, centre_of(VECTORS))
    shards = []
    for number, rows in enumerate(groups):
        shard = ShardDescription.of(number, len(rows), is_exact=False)
        build_shard(template, [(IDS[rows], VECTORS[rows])], folder, shard, centre_of(VECTORS))
        labels = pa.table({"soma_joinid": IDS[rows], "kind": pa.array([str(row % 3) for row in rows], pa.string())})
        pq.write_table(labels, folder.path / shard.labels)
        shards.append(shard)
    return shards


def ask_all(searchers):
    def ask(method, asked, *arguments, own=None):
        last = [(each,) for each in own] if own is not None else [()] * len(searchers)
        return [getattr(one, method)(asked, *arguments, *each) for one, each in zip(searchers, last, strict=True)]

    return ask


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("factory", [*MERGED, *OTHERS, *ROUNDED, *NO_FILTERS])
@pytest.mark.parametrize("n_shards", [2, 5])
def test_the_answers_of_one_shard_with_all_cells(factory, n_shards, tmp_path, monkeypatch):
    """To the bit: with ties, filters and cells taken out; in one process, and in three that hold some shards each."""
    monkeypatch.setattr(rounds, "EXACT_ROWS", 300)
    random = np.random.default_rng(n_shards)
    one, many = Folder.at(tmp_path / "one"), Folder.at(tmp_path / "many")
    whole, shards = write(one, factory, [np.arange(N)]), write(many, factory, divided(random, n_shards))
    own = pa.table({"kind": ["0", None, "1"] * 20})
    filters = (
        [None]
        if factory in NO_FILTERS
        else [None, NeighborFilter.among(None, own, 60), NeighborFilter.among(f"soma_joinid < {IDS[200]}", own, 60)]
    )
    for taken_out in (False, True)[: len(filters)]:
        if taken_out:
            kept = random.choice(IDS, 1000, replace=False)
            whole = [keep_only(one, shard, np.sort(kept)) for shard in whole]
            shards = [keep_only(many, shard, np.sort(kept)) for shard in shards]
        together = Searcher(many, shards)
        alone = together if factory in ROUNDED else Searcher(one, whole)
        apart = [Searcher(many, some) for some in (shards[:1], shards[1:2], shards[2:])]
        for allowed in filters:
            expected = alone.search(QUERIES, K, PARAMS, allowed)
            assert_same(together.search(QUERIES, K, PARAMS, allowed), expected)
            n = PARAMS.n_candidates(K)
            assert_same(nearest(ask_all(apart), QUERIES, K, PARAMS.nprobe, n, allowed, alone=False), expected)


@pytest.mark.parametrize("factory", [MERGED[0], "IVF8,SQ8"])
def test_work_does_not_grow_with_the_shards(factory, tmp_path, monkeypatch):
    """Lists with their look-up tables, and vectors read: as often as with one shard, whoever holds them."""
    read, halves = [], Shard.halves
    monkeypatch.setattr(Shard, "halves", lambda shard, rows: read.append(len(rows)) or halves(shard, rows))
    stats = faiss.cvar.indexIVF_stats
    work = {}
    for n_shards in (1, 6):
        shards = write(Folder.at(tmp_path / str(n_shards)), factory, np.array_split(np.arange(N), n_shards))
        searcher = Searcher(Folder.at(tmp_path / str(n_shards)), shards)
        read.clear()
        stats.reset()
        searcher.search(QUERIES[30:], K, SearchParams(3, 40))  # without ties, which are searched for again
        work[n_shards] = stats.nlist if factory == MERGED[0] else None, stats.ndis, sum(read)
    assert work[1] == work[6]
    assert work[1][2] == 30 * 40


@pytest.mark.parametrize("factory", [*MERGED, *OTHERS, *ROUNDED, *NO_FILTERS])
@pytest.mark.parametrize("n", [1, 7, 64, 1490, 2000])
def test_the_nearest_codes_by_definition(factory, n):
    """Of all codes by score and id; many have the same code."""
    template, groups = train(VECTORS, factory, seed=0), np.array_split(np.arange(N), 3)
    opened, whole = [open_template(template) for _ in groups], open_template(template)
    for index, rows in zip(opened, groups, strict=True):
        index.add(VECTORS[rows])
        whole.add(VECTORS[rows])
    rows, scores = find_assigned(whole, assign(whole, QUERIES[:8], 8), N, None)
    ids = np.random.default_rng(0).permutation(N)
    shuffled = np.lexsort((ids[rows], -scores))
    bits = 9

    def ids_of(places):
        return np.where(places == NONE, NONE, ids[np.minimum((places >> bits) * 500 + (places & 511), N - 1)])

    places, found_scores = Codes(opened, bits).nearest(QUERIES[:8], n, 8, ids_of)
    for query in range(8):
        found = ids_of(places[query])
        expected = ids[rows[query]][shuffled[query][:n]]
        assert sorted(found[found != NONE].tolist()) == sorted(expected.tolist())
        assert (found == NONE).sum() == max(0, n - N)
        best = np.sort(scores[query])[::-1][:n]
        np.testing.assert_array_equal(np.sort(found_scores[query])[::-1][: len(best)], best)


@pytest.mark.parametrize("factory", MERGED)
@pytest.mark.parametrize("threads", [1, 2])
def test_merged_lists_hold_the_codes_of_one_index(factory, threads, monkeypatch):
    monkeypatch.setattr("scgpt_ray.index.merged_lists._CODES_AT_ONCE", 400)
    template, cuts = train(VECTORS, factory, seed=0), [0, 1, 600, 600, 641, N]
    parts = [open_template(template) for _ in cuts[1:]]
    for index, start, end in zip(parts, cuts, cuts[1:], strict=False):
        index.add(VECTORS[start:end])
    whole = open_template(template)
    whole.add(VECTORS)
    assert can_merge(whole)
    faiss.omp_set_num_threads(threads)
    merged = merge_lists(parts, cuts[:-1])
    faiss.omp_set_num_threads(1)
    assert merged.ntotal == inverted_lists(merged).ntotal == N
    ours, theirs = (faiss.downcast_InvertedLists(inverted_lists(each).invlists) for each in (merged, whole))
    for number in range(8):
        n = theirs.list_size(number)
        assert ours.list_size(number) == n
        n_bytes = -(-n // ours.n_per_block) * ours.block_size
        for read, size in (("get_ids", n), ("get_codes", n_bytes)):
            held = [faiss.rev_swig_ptr(getattr(lists, read)(number), size) for lists in (ours, theirs)]
            np.testing.assert_array_equal(*held)


@pytest.mark.parametrize("n_pairs", [1, 5])
def test_blocks_are_unpacked_as_faiss_does(n_pairs):
    """Blocks of 32; `unpack_1` of faiss 1.15 mistakes larger ones, which are compared when lists are merged."""
    index = empty_index(f"IVF1,PQ{2 * n_pairs}x4fs", 4 * n_pairs)
    packer = inverted_lists(index).get_CodePacker()
    blocks = np.random.default_rng(0).integers(256, size=(3, n_pairs * 32), dtype=np.uint8)
    codes = np.stack([packer.unpack_1(blocks, place) for place in range(3 * 32)])
    np.testing.assert_array_equal(unpacked(blocks, 32), codes)
    np.testing.assert_array_equal(packed_in_blocks(codes, 32), blocks)


@given(
    scores=st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=2, max_size=4),
    n=st.integers(1, 8),
)
def test_the_cut_over_searchers_keeps_the_best(scores, n):
    """Against sorting all of them."""
    total, found = 0, []
    for of_searcher in scores:
        ids = total + np.arange(len(of_searcher))
        total += len(of_searcher)
        named = np.append(ids * 7 % 29, NONE)[None]  # in no order of the searchers
        places, estimated = np.append(ids, NONE)[None], np.append(of_searcher, -np.inf).astype(np.float32)[None]
        found.append(rounds.Candidates(places, named, estimated))
    kept = [place for places in rounds._kept(found, n) for place in places[0].tolist() if place != NONE]
    all_scores = [score for of_searcher in scores for score in of_searcher]
    expected = sorted(range(total), key=lambda place: (-all_scores[place], place * 7 % 29))[:n]
    assert sorted(kept) == sorted(expected)


def test_codes_of_other_cells_than_their_shard_are_refused(tmp_path):
    folder = Folder.at(tmp_path)
    first, second = write(folder, MERGED[0], [np.arange(900), np.arange(900, N)])
    folder.write(second.name, folder.read(first.name))
    with pytest.raises(ReferenceSetError, match=r"shard-00001.faiss holds 900 cells, not 600"):
        Searcher(folder, [first, second]).search(QUERIES, K, PARAMS)
    (tmp_path / second.name).unlink()
    with pytest.raises(ReferenceSetError, match=r"shard-00001.faiss.* is missing|shard-00001.faiss cannot be read"):
        Searcher(folder, [first, second]).search(QUERIES, K, PARAMS)


def test_shards_without_cells(tmp_path):
    folder = Folder.at(tmp_path)
    shards = write(folder, MERGED[0], [[], []])
    allowed = NeighborFilter.among("kind == '1'", pa.table({}), len(QUERIES))
    for filtered in (None, allowed):
        ids, scores = Searcher(folder, shards).search(QUERIES, K, PARAMS, filtered)
        assert (ids == NONE).all()
        assert np.isneginf(scores).all()


def test_a_filter_that_leaves_nothing(tmp_path):
    shards = write(Folder.at(tmp_path), MERGED[0], np.array_split(np.arange(N), 2))
    allowed = NeighborFilter.among("soma_joinid < 0", pa.table({}), len(QUERIES))
    ids, _ = Searcher(Folder.at(tmp_path), shards).search(QUERIES, K, PARAMS, allowed)
    assert (ids == NONE).all()


def test_vectors_of_shards_that_interleave_are_told_apart(tmp_path):
    """Rows of several shards in one block of candidates; ids of later shards are smaller."""
    groups = [np.arange(1, N, 2), np.arange(0, N, 2)]
    shards = write(Folder.at(tmp_path), MERGED[0], groups)
    searcher = Searcher(Folder.at(tmp_path), shards)
    assert not searcher._is_in_order
    places = np.array([[(1 << searcher._bits) + 4, 4, NONE, 700, 1 << searcher._bits]])
    assert searcher._ids_of(places).tolist() == [[IDS[8], IDS[9], NONE, IDS[1401], IDS[0]]]
    expected = np.concatenate([VECTORS[[8, 9]], VECTORS[[1401, 0]]])
    found = searcher._differences(places[places != NONE]) + centre_of(VECTORS)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_few_vectors_are_read_without_those_around_them(tmp_path):
    """The system is told so for one query, and no longer for many."""
    folder = Folder.at(tmp_path)
    searcher = Searcher(folder, write(folder, MERGED[0], [np.arange(N // 2), np.arange(N // 2, N)]))

    def told():
        names = {str(tmp_path / shard.description.vectors) for shard in searcher.shards}
        flags, inside = [], False
        for words in map(str.split, Path("/proc/self/smaps").read_text().splitlines()):
            inside = words[-1] in names if "-" in words[0] else inside
            if inside and words[0] == "VmFlags:":
                flags.append("rr" in words)
        assert len(flags) == len(names) == 2
        return set(flags)

    for n_queries, few in ((1, True), (2, False), (1, True)):  # ten candidates each, of 1,500 cells
        searcher.search(QUERIES[:n_queries], 1, SearchParams(3, 10))
        assert told() == {few}
