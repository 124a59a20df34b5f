"""Search, merge and the exact twin: sharding must not be visible in a result."""

from functools import partial
from itertools import pairwise

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import ConfigError
from scgpt_ray.index.assigned import _transformed
from scgpt_ray.index.recall import recall_at
from scgpt_ray.index.search import (
    NONE,
    _nearest,
    candidates,
    exact_search,
    in_threads,
    merge,
    scores_of,
    search,
    set_threads,
)
from scgpt_ray.index.template import open_template, train


@pytest.fixture
def random():
    """The same numbers in every test, whichever ran before it."""
    return np.random.default_rng(0)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def cells(n, d=24, types=12, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((types, d))[rng.integers(types, size=n)] + 0.4 * rng.standard_normal((n, d)))


def by_definition(ids, vectors, queries, k):
    """Slow twin: every score, sorted by score and id in Python."""
    found_ids = np.full((len(queries), k), NONE)
    found_scores = np.full((len(queries), k), -np.inf, np.float32)
    for q, query in enumerate(queries):
        scores = [np.float32(sum(float(a) * float(b) for a, b in zip(query, v, strict=True))) for v in vectors]
        ranked = sorted(zip(scores, ids.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))[:k]
        for place, (score, joinid) in enumerate(ranked):
            found_ids[q, place], found_scores[q, place] = joinid, score
    return found_ids, found_scores


def shards_of(ids, vectors, groups):
    """Exact indexes and the ids of their rows, in ascending order."""
    template = train(vectors, "Flat", seed=0)
    shards = []
    for group in groups:
        order = np.argsort(ids[group])
        index = open_template(template)
        index.add(np.ascontiguousarray(vectors[group][order]))
        shards.append((index, ids[group][order]))
    return shards


def find(shard, queries, k):
    index, ids = shard
    rows, scores = search(index, queries, k, 1)
    return np.where(rows == NONE, NONE, np.append(ids, NONE)[rows]), scores


def test_shards_find_what_one_index_finds_to_the_bit(random):
    vectors, ids = cells(1500), random.permutation(10**7)[:1500] + 10**10
    vectors[700:760] = vectors[:60]  # the same cell twice is common in an atlas
    queries = np.concatenate([vectors[:40], cells(60, seed=1)])
    rows = random.permutation(1500)
    groups = [rows[:600], rows[600:601], rows[600:600], rows[601:]]
    (whole,) = shards_of(ids, vectors, [np.arange(1500)])
    expected_ids, expected_scores = find(whole, queries, 10)
    found_ids, found_scores = merge([find(shard, queries, 10) for shard in shards_of(ids, vectors, groups)], 10)
    np.testing.assert_array_equal(found_ids, expected_ids)
    np.testing.assert_array_equal(found_scores, expected_scores)


def test_ties_across_shards_are_settled_by_id_at_full_width(random):
    distinct = cells(300, d=512)
    vectors, ids = np.repeat(distinct, 20, axis=0), random.permutation(6000)
    rows = random.permutation(6000)
    groups = [rows[:4001], rows[4001:4500], rows[4500:]]
    queries = distinct  # enough for faiss to multiply matrices
    pieces = [find(shard, queries, 6) for shard in shards_of(ids, vectors, groups)]
    found_ids, found_scores = merge(pieces, 6)
    np.testing.assert_array_equal(found_ids, np.sort(ids.reshape(300, 20), axis=1)[:, :6])
    assert (found_scores == found_scores[:, :1]).all()
    (whole,) = shards_of(ids, vectors, [slice(None)])
    for found, expected in zip((found_ids, found_scores), find(whole, queries, 6), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("n", "k"), [(0, 3), (1, 3), (2, 3), (3, 3), (4, 3), (50, 1), (50, 50), (50, 60)])
def test_flat_and_exact_search_are_the_definition(n, k, random):
    vectors, ids = cells(max(n, 1))[:n], random.permutation(n) + 100
    queries = cells(7, seed=1)
    expected_ids, expected_scores = by_definition(ids, vectors, queries, k)
    (flat,) = shards_of(ids, vectors, [slice(None)])
    blocks = [(ids[start : start + 9], vectors[start : start + 9]) for start in range(0, n, 9)]
    for found_ids, found_scores in (find(flat, queries, k), exact_search(iter(blocks), queries, k)):
        assert (found_ids.shape, found_ids.dtype, found_scores.dtype) == ((7, k), np.int64, np.float32)
        np.testing.assert_array_equal(found_ids, expected_ids)
        np.testing.assert_allclose(found_scores, expected_scores, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_of_equal_cells_the_smallest_ids_are_kept(k, random):
    distinct = cells(40)
    vectors, ids = np.repeat(distinct, 30, axis=0), random.permutation(1200)
    (shard,) = shards_of(ids, vectors, [slice(None)])
    own = np.sort(ids.reshape(40, 30), axis=1)[:, :k]
    np.testing.assert_array_equal(find(shard, distinct, k)[0], own)
    np.testing.assert_array_equal(exact_search([(ids, vectors)], distinct, k)[0], own)


def test_a_tie_of_all_cells_ends(random):
    vectors, ids = np.repeat(cells(1), 5000, axis=0), random.permutation(5000)
    (shard,) = shards_of(ids, vectors, [slice(None)])
    found, scores = find(shard, vectors[:30], 4)
    assert (found == np.arange(4)).all()
    assert (scores == scores[0, 0]).all()


def test_no_queries_give_no_neighbours():
    (shard,) = shards_of(np.arange(5), cells(5), [slice(None)])
    for ids, scores in (
        find(shard, cells(1)[:0], 3),
        exact_search([(np.arange(5), cells(5))], cells(1)[:0], 3),
    ):
        assert (ids.shape, scores.shape) == ((0, 3), (0, 3))


def coded(factory, vectors):
    index = open_template(train(vectors, factory, seed=0))
    index.add(vectors)
    return index


CODES = ["IVF16,SQ8", "PCAR24,IVF16,PQ12x4fsr", "PCAR24,IVF16_HNSW32,PQ12np", "RR24,IVF16,RaBitQ"]


@pytest.mark.parametrize(
    "factory", ["PCAR48,IVF4,SQ8", "RR64,IVF4,RaBitQ", "L2norm,OPQ8_48,PCA32,IVF4,SQ8", "IVF4,SQ8"]
)
def test_a_query_is_rotated_as_if_it_were_alone(factory):
    index, queries = open_template(train(cells(800, d=64), factory, seed=0)), cells(100, d=64, seed=1)
    rotated = _transformed(index, queries)
    np.testing.assert_array_equal(rotated, np.concatenate([_transformed(index, query[None]) for query in queries]))
    if factory != "IVF4,SQ8":
        chain = [index.chain.at(step) for step in range(index.chain.size())]
        for step in chain:
            queries = step.apply(queries)
    np.testing.assert_allclose(rotated, queries, atol=1e-6)


@pytest.mark.parametrize("d", [1, 7, 512])
def test_a_score_depends_on_its_pair_alone(d):
    vectors, queries = cells(300, d=d), cells(50, d=d, seed=1)
    rows = np.random.default_rng(0).integers(-1, 300, (50, 40))
    scores = scores_of(queries, rows, vectors.__getitem__)
    np.testing.assert_array_equal(np.isneginf(scores), rows == NONE)
    for some in (slice(0, 1), slice(3, 20)):
        np.testing.assert_array_equal(scores_of(queries[some], rows[some], vectors.__getitem__), scores[some])
        np.testing.assert_array_equal(scores_of(queries, rows[:, some], vectors.__getitem__), scores[:, some])
    exact = np.einsum("qd,qrd->qr", queries.astype(np.float64), vectors[rows].astype(np.float64))
    np.testing.assert_allclose(scores[rows != NONE], exact[rows != NONE], atol=1e-6)


@pytest.mark.parametrize("rounding", [0, 1e-6])
def test_what_a_product_rounds_does_not_hide_a_neighbour(rounding):
    scores = np.float32(0.5) + np.random.default_rng(0).permutation(300).astype(np.float32) * np.float32(2**-22)
    rough = scores + np.random.default_rng(1).uniform(-rounding, rounding, 300)

    def find(queries, width):
        rows = np.argsort(-rough)[:width]
        return np.tile(rows, (len(queries), 1)), np.tile(scores[rows], (len(queries), 1))

    found, _ = _nearest(find, np.zeros((2, 1), np.float32), 5, 6, 300)
    assert found.tolist() == [np.argsort(-scores)[:5].tolist()] * 2


def test_few_queries_of_an_exact_index_are_compared_one_by_one_and_many_by_a_product(monkeypatch, request):
    """24 of width 64 are few for two threads. One answer; faiss' own choice, a global variable, is restored."""
    request.addfinalizer(partial(set_threads, faiss.omp_get_max_threads()))
    set_threads(2)
    vectors, queries = cells(2000, d=64), cells(40, d=64, seed=1)
    seen, default = [], faiss.cvar.distance_compute_blas_threshold

    def watched(call):
        def noted(*arguments, **options):
            seen.append(faiss.cvar.distance_compute_blas_threshold)
            return call(*arguments, **options)

        return noted

    monkeypatch.setattr(faiss.IndexFlat, "search", watched(faiss.IndexFlat.search))
    monkeypatch.setattr(faiss, "knn", watched(faiss.knn))
    [(index, _)] = shards_of(np.arange(2000), vectors, [slice(None)])
    ways = [lambda some: search(index, some, 5, 1), lambda some: exact_search([(np.arange(2000), vectors)], some, 5)]
    answers = [pair for way in ways for pair in (way(queries[:24]), way(queries))]
    for ids, scores in answers:
        np.testing.assert_array_equal(ids, answers[-1][0][: len(ids)])
        np.testing.assert_array_equal(scores, answers[-1][1][: len(ids)])
    assert [threshold > 0 for threshold in seen] == [True, False] * 2
    assert faiss.cvar.distance_compute_blas_threshold == default


def test_lists_that_tie_are_chosen_as_if_a_query_were_alone():
    vectors, queries = cells(6000, d=64), cells(8000, d=64, seed=1)  # enough for faiss to multiply matrices
    index = open_template(train(vectors, "IVF32,SQ8", seed=0))
    index.quantizer.reset()
    index.quantizer.add(np.tile(vectors[:1], (32, 1)))
    index.add(vectors)
    together = candidates(index, queries, 5, 3)
    alone = np.concatenate([candidates(index, queries[row : row + 1], 5, 3) for row in range(100)])
    np.testing.assert_array_equal(together[:100], alone)


def test_each_call_runs_in_one_thread_and_answers_come_in_order():
    found = in_threads(lambda start: (start, faiss.omp_get_max_threads()), range(4), 2)
    assert found == [(start, 1) for start in range(4)]


@pytest.mark.parametrize("factory", CODES)
def test_candidates_hold_the_truth_when_all_lists_are_read(factory):
    vectors, queries = cells(2000), cells(50, seed=1)
    truth, _ = exact_search([(np.arange(2000), vectors)], queries, 10)
    index = coded(factory, vectors)
    few, many = (recall_at(candidates(index, queries, n, 16), truth) for n in (10, 400))
    assert few < many
    assert many > 0.98
    assert recall_at(candidates(index, queries, 400, 1), truth) < many


@pytest.mark.parametrize("factory", ["Flat", *CODES])
def test_only_allowed_rows_are_found(factory, random):
    vectors, queries = cells(2000), cells(20, seed=1)
    allowed = random.random(2000) < 0.2
    found = candidates(coded(factory, vectors), queries, 500, 16, allowed)
    assert set(found.ravel()) - {NONE} <= set(np.flatnonzero(allowed))
    assert ((found != NONE).sum(axis=1) == min(500, allowed.sum())).all()


def test_a_kind_of_index_that_cannot_filter_says_so():
    index = coded("IVF4,SQ8,Refine(Flat)", cells(400))
    with pytest.raises(ConfigError, match=r"cannot be searched with a filter: .*--factory auto"):
        candidates(index, cells(2), 5, 4, np.ones(400, bool))


def test_lists_that_are_not_probed_leave_places_empty():
    vectors = cells(700)
    ids, scores = search(coded("IVF16,SQ8", vectors), vectors[:50], 600, 1)
    assert (ids == NONE).any()
    np.testing.assert_array_equal(ids == NONE, np.isneginf(scores))
    assert ((ids == NONE)[:, :-1] <= (ids == NONE)[:, 1:]).all(), "empty places come last"


def test_merge_orders_by_score_then_id_and_puts_none_last():
    inf = np.float32(np.inf)
    first = (np.array([[5, 9, -1], [-1, -1, -1]]), np.array([[0.9, 0.5, 7.0], [-inf] * 3], np.float32))
    second = (np.array([[7, 3], [4, -1]]), np.array([[0.9, 0.5], [-0.2, -inf]], np.float32))
    for results in ([first, second], [second, first]):
        ids, scores = merge(results, 4)
        np.testing.assert_array_equal(ids, [[5, 7, 3, 9], [4, -1, -1, -1]])
        np.testing.assert_array_equal(scores, np.array([[0.9, 0.9, 0.5, 0.5], [-0.2, -inf, -inf, -inf]], np.float32))
    ids, scores = merge([second], 3)
    np.testing.assert_array_equal(ids, [[7, 3, -1], [4, -1, -1]])
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)


@given(
    scores=st.lists(st.integers(-3, 3), min_size=0, max_size=30),
    k=st.integers(1, 12),
    cuts=st.lists(st.integers(0, 30), max_size=4),
)
def test_merge_of_pieces_is_the_sorted_whole(scores, k, cuts):
    n = len(scores)
    values = np.array(scores, np.float32) / 4
    ids = np.random.default_rng(n).permutation(n)
    bounds = [0, *sorted(min(cut, n) for cut in cuts), n]
    pieces = [(ids[None, a:b], values[None, a:b]) for a, b in pairwise(bounds)]
    found_ids, found_scores = merge(pieces, k)
    ranked = sorted(zip((-values).tolist(), ids.tolist(), strict=True))[:k]
    padding = k - len(ranked)
    assert found_ids[0].tolist() == [joinid for _, joinid in ranked] + [NONE] * padding
    assert found_scores[0].tolist() == [-score for score, _ in ranked] + [-np.inf] * padding
