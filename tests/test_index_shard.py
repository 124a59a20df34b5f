"""Template and shards: training, filling, sealing, opening, searching in two steps."""

import json
import tempfile
from itertools import pairwise

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scgpt_ray.errors import ConfigError, InputError, ReferenceSetError
from scgpt_ray.index import rounds, search, shard
from scgpt_ray.index.description import CENTRE
from scgpt_ray.index.factory import n_lists
from scgpt_ray.index.neighbor_filter import NeighborFilter
from scgpt_ray.index.recall import recall_at
from scgpt_ray.index.search import best, exact_search, set_threads
from scgpt_ray.index.searcher import Searcher, SearchParams
from scgpt_ray.index.shard import HALF, build_shard, commit_shard, committed_shard, open_faiss
from scgpt_ray.index.template import centre_of, open_template, train
from scgpt_ray.records import ShardDescription
from scgpt_ray.storage import Folder
from scgpt_ray.temporary_folder import temporary_folder


def unit_vectors(n, d=32, seed=0, mean=0.0):
    vectors = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32) + np.float32(mean)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


CODES = ["IVF8,SQ8", "PCAR16,IVF8,PQ8x4fsr", "PCAR16,IVF8_HNSW32,PQ8x4fsr", "RR32,IVF8,RaBitQ"]


def write(folder, factory, vectors, ids, number=0, template=None, blocks=None):
    """A shard of one block, unless cut, with a label table."""
    template = template or train(vectors, factory, seed=0)
    shard = ShardDescription.of(number, len(ids), is_exact=factory == "Flat")
    stream = blocks or [(ids, vectors)]
    assert build_shard(template, stream, folder, shard, centre_of(vectors)) == len(ids)
    with folder.staged(CENTRE) as path, path.open("wb") as file:
        np.save(file, centre_of(vectors))
    labels = pa.table({"soma_joinid": ids, "kind": [str(number % 3) for number in ids]})
    pq.write_table(labels, folder.path / shard.labels)
    return shard


@pytest.mark.parametrize("factory", ["Flat", *CODES])
def test_training_is_a_function_of_sample_and_seed(factory):
    sample = unit_vectors(5000)
    set_threads(2)
    first = train(sample, factory, seed=3)
    set_threads(1)
    assert train(sample, factory, seed=3) == first
    assert n_lists(open_template(first)) == (1 if factory == "Flat" else 8)
    if factory != "Flat":
        assert train(sample, factory, seed=4) != first


@pytest.mark.parametrize("factory", ["PCAR48,IVF64,PQ24x4fsr", "IVF64,PQ2np", "IMI2x3,SQ8", "IVF8,SQ8,RFlat"])
def test_training_of_many_is_a_function_of_sample_and_seed(factory):
    """Enough for faiss to multiply matrices, whoever trains the lists."""
    sample = unit_vectors(6000, d=64)
    set_threads(2)
    first = train(sample, factory, seed=0)
    set_threads(1)
    assert train(sample, factory, seed=0) == first
    if "IMI" not in factory:  # which has a seed that faiss fixes
        assert train(sample, factory, seed=1) != first


@pytest.mark.parametrize("factory", ["Flat", *CODES])
def test_a_template_is_empty_and_trained(factory):
    index = open_template(train(unit_vectors(400), factory, seed=0))
    metric = faiss.METRIC_INNER_PRODUCT if factory == "Flat" else faiss.METRIC_L2
    assert (index.ntotal, index.is_trained, index.metric_type) == (0, True, metric)


def test_the_graph_over_the_centroids_finds_the_nearest():
    sample = unit_vectors(4000)
    index = open_template(train(sample, "IVF64_HNSW32,SQ8", seed=0))
    lists = faiss.extract_index_ivf(index)
    centroids = faiss.downcast_index(lists.quantizer).reconstruct_n(0, 64)
    nearest = lists.quantizer.search(sample, 1)[1][:, 0]
    distances = ((sample[:, None] - centroids[None]) ** 2).sum(axis=2)
    assert (nearest == distances.argmin(axis=1)).mean() > 0.99


def test_a_sample_that_is_not_finite_or_too_small_for_the_codebook_is_refused():
    sample = unit_vectors(2000)
    sample[70, 3], sample[71] = np.nan, np.inf
    with pytest.raises(InputError, match=r"^2 of 2,000 cells to train on have NaN or infinity"):
        train(sample, "PCAR16,IVF8,PQ8x4fsr", seed=0)
    with pytest.raises(InputError, match=r"^--factory IVF8,PQ4x10np cannot be trained on 312 cells: .* points"):
        train(unit_vectors(312), "IVF8,PQ4x10np", seed=0)


def test_a_bad_factory_and_too_few_cells_are_refused():
    with pytest.raises(ConfigError, match=r"^--factory nonsense"):
        train(unit_vectors(10), "nonsense", seed=0)
    with pytest.raises(InputError, match="100 cells to train 8 inverted lists; expected at least 39 cells per list"):
        train(unit_vectors(100), "IVF8,SQ8", seed=0)


@pytest.mark.parametrize("factory", ["Flat", *CODES])
@pytest.mark.parametrize("block_rows", [1, 64, 16_384])
def test_neither_the_cut_into_blocks_nor_the_threads_leave_a_trace(factory, block_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "_BLOCK_ROWS", block_rows)
    vectors, ids = unit_vectors(500), np.arange(500) * 7 + 2**40
    template = train(vectors, factory, seed=0)
    cut = [0, 1, 1, 200, 499, 500]
    blocks = iter([(ids[a:b], vectors[a:b]) for a, b in pairwise(cut)])
    set_threads(2)
    whole = write(Folder.at(tmp_path / "whole"), factory, vectors, ids, template=template)
    set_threads(1)
    pieces = write(Folder.at(tmp_path / "pieces"), factory, vectors, ids, template=template, blocks=blocks)
    for name in whole.files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes(), name
    assert pieces == whole
    assert np.load(tmp_path / "pieces" / whole.ids).tolist() == ids.tolist()


def test_many_vectors_make_the_same_shard_with_any_number_of_threads(tmp_path):
    vectors, ids, factory = unit_vectors(5000, d=64), np.arange(5000), "PCAR48,IVF64,PQ24x4fsr"
    template = train(vectors, factory, seed=0)
    for threads in (1, 2):
        set_threads(threads)
        written = write(Folder.at(tmp_path / str(threads)), factory, vectors, ids, template=template)
    assert (tmp_path / "1" / written.name).read_bytes() == (tmp_path / "2" / written.name).read_bytes()


def test_what_a_shard_leaves_opens_with_numpy_and_faiss(tmp_path):
    vectors, ids = unit_vectors(500, mean=1.0), np.arange(500) * 3 + 5
    shard = write(Folder.at(tmp_path), "PCAR16,IVF8,PQ8x4fsr", vectors, ids)
    assert np.load(tmp_path / shard.ids).tolist() == ids.tolist()
    halved = np.load(tmp_path / shard.vectors)
    assert halved.dtype == HALF
    np.testing.assert_allclose(halved + np.load(tmp_path / CENTRE), vectors, atol=2e-4)
    assert faiss.read_index(str(tmp_path / shard.name)).ntotal == 500
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_block_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield np.arange(10), unit_vectors(10)
        raise OSError("gone")

    template = train(unit_vectors(400), "IVF8,SQ8", seed=0)
    with pytest.raises(OSError, match="gone"):
        build_shard(
            template, broken(), Folder.at(tmp_path), ShardDescription.of(0, 10, is_exact=False), np.zeros(32, "f4")
        )
    assert list(tmp_path.iterdir()) == []


def test_a_commit_marker_is_of_one_request_and_of_whole_files(tmp_path):
    folder = Folder.at(tmp_path)
    shard = write(folder, "IVF8,SQ8", unit_vectors(400), np.arange(400))
    assert committed_shard(folder, 0, "a") is None
    commit_shard(folder, shard, "a")
    assert committed_shard(folder, 0, "a") == shard
    assert committed_shard(folder, 0, "b") is None
    assert committed_shard(folder, 1, "a") is None
    content = folder.read(shard.ids)
    folder.write(shard.ids, content[:-1])
    assert committed_shard(folder, 0, "a") is None
    folder.write(shard.ids, content)
    for torn in (b"", b"{}", b"[1]", json.dumps({"request": "a", "shard": {"name": 1}}).encode()):
        folder.write("shard-00000.json", torn)
        assert committed_shard(folder, 0, "a") is None


@pytest.mark.parametrize("factory", CODES)
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_the_second_ranking_finds_the_truth_however_the_vectors_crowd(factory, mean, tmp_path):
    vectors, ids, queries = unit_vectors(1500, mean=mean), np.arange(1500) + 10**12, unit_vectors(60, seed=1, mean=mean)
    shard = write(Folder.at(tmp_path), factory, vectors, ids)
    truth_ids, truth_scores = exact_search([(ids, vectors)], queries, 10)
    opened = Searcher(Folder.at(tmp_path), [shard])
    found_ids, found_scores = opened.search(queries, 10, SearchParams(8, 1000))
    assert recall_at(found_ids, truth_ids) > 0.99
    np.testing.assert_allclose(found_scores, truth_scores, atol=3e-4)
    few, _ = opened.search(queries, 10, SearchParams(1, 0))
    assert recall_at(few, truth_ids) < recall_at(found_ids, truth_ids)
    assert recall_at(opened.exact(queries, 10)[0], truth_ids) > 0.99


@pytest.mark.parametrize("factory", ["Flat", *CODES])
def test_an_answer_depends_neither_on_the_other_queries_nor_on_threads(factory, tmp_path, monkeypatch):
    d, n_queries = 256, 600  # enough for faiss to multiply matrices
    vectors, queries = unit_vectors(1500, d=d, mean=1.0), unit_vectors(n_queries, d=d, seed=1, mean=1.0)
    vectors[700:760] = vectors[:60]  # the same cell twice
    queries[:60] = vectors[:60]
    shard = write(Folder.at(tmp_path), factory.replace("RR32", f"RR{d}"), vectors, np.arange(1500))
    opened = Searcher(Folder.at(tmp_path), [shard])
    set_threads(2)
    expected = opened.search(queries, 5, SearchParams(4, 300)), opened.exact(queries, 5)
    set_threads(1)
    monkeypatch.setattr(search, "_BLOCK_FLOATS", 1)
    for block in (slice(0, 1), slice(60, 63), slice(3, 500)):
        found = opened.search(queries[block], 5, SearchParams(4, 300)), opened.exact(queries[block], 5)
        for (ids, scores), (whole_ids, whole_scores) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ids, whole_ids[block])
            np.testing.assert_array_equal(scores, whole_scores[block])


def test_ties_of_many_candidates_go_to_the_smallest_ids(tmp_path):
    distinct = unit_vectors(40, mean=1.0)
    vectors = np.repeat(distinct, 50, axis=0)
    shard = write(Folder.at(tmp_path), "IVF8,SQ8", vectors, np.arange(2000))
    found, scores = Searcher(Folder.at(tmp_path), [shard]).search(distinct, 7, SearchParams(8, 300))
    np.testing.assert_array_equal(found, 50 * np.arange(40)[:, None] + np.arange(7))
    assert (scores == scores[:, :1]).all()


@pytest.mark.parametrize("exact_rows", [0, 10**6])
def test_a_filter_by_selector_and_by_comparison_agree_with_brute_force(exact_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "EXACT_ROWS", exact_rows)
    vectors, ids, queries = unit_vectors(1500), np.arange(1500) + 100, unit_vectors(40, seed=1)
    shard = write(Folder.at(tmp_path), "PCAR16,IVF8,PQ8x4fsr", vectors, ids)
    allowed = NeighborFilter.among("soma_joinid < 900", pa.table({"kind": ["0", None] * 20}), 40)
    found, _ = Searcher(Folder.at(tmp_path), [shard]).search(queries, 10, SearchParams(8, 600), allowed)
    for place in range(40):
        may = (ids < 900) & ((ids % 3 != 0) | (place % 2 == 1))
        truth, _ = exact_search([(ids[may], vectors[may])], queries[place : place + 1], 10)
        assert recall_at(found[place : place + 1], truth) >= 0.9
        assert set(found[place]) <= set(ids[may])


def test_a_filter_that_leaves_many_looks_into_more_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "EXACT_ROWS", 10)
    vectors, queries = unit_vectors(1500), unit_vectors(40, seed=1)
    shard = write(Folder.at(tmp_path), "IVF8,SQ8", vectors, np.arange(1500))
    allowed = np.arange(0, 187)
    truth, _ = exact_search([(allowed, vectors[allowed])], queries, 10)
    condition = NeighborFilter.among("soma_joinid < 187", pa.table({}), 40)
    found, _ = Searcher(Folder.at(tmp_path), [shard]).search(queries, 10, SearchParams(1, 300), condition)
    assert recall_at(found, truth) > 0.99  # an eighth is left: one list becomes all eight


def test_ties_behind_the_spare_candidates_go_to_the_smallest_rows():
    rows = np.stack([np.random.default_rng(seed).permutation(500) for seed in range(20)])
    scores = np.where(rows == 499, np.float32(0.9), np.float32(0.5))
    found, found_scores = best([(rows, scores)], 4, lambda places: places)
    assert (found == [499, 0, 1, 2]).all()
    assert (found_scores == np.float32([0.9, 0.5, 0.5, 0.5])).all()


@pytest.mark.parametrize("factory", ["Flat", *CODES])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_small_and_empty_shards(factory, n, tmp_path):
    vectors = unit_vectors(400)
    shard = write(Folder.at(tmp_path), factory, vectors[:n], np.arange(n), template=train(vectors, factory, seed=0))
    ids, scores = Searcher(Folder.at(tmp_path), [shard]).search(vectors[:7], 5, SearchParams(8, 350))
    assert ((ids >= 0).sum(axis=1) == min(5, n)).all()
    assert np.isfinite(scores).sum() == 7 * min(5, n)


@pytest.mark.parametrize("keep", [0, 3, 50, 1000, -8])
def test_a_torn_file_is_refused(keep, tmp_path):
    shard = write(Folder.at(tmp_path), "IVF8,SQ8", unit_vectors(400), np.arange(400))
    for name in (shard.name, shard.ids, shard.vectors):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:keep])
        with pytest.raises(ReferenceSetError, match="cannot be read") as caught:
            Searcher(Folder.at(tmp_path), [shard]).search(unit_vectors(1), 1, SearchParams(1, 1))
        assert "\n" not in str(caught.value)
        (tmp_path / name).write_bytes(whole)
    torn = (tmp_path / shard.name).read_bytes()[:keep]
    with pytest.raises(ReferenceSetError, match="cannot be read"):
        open_faiss(torn)


def test_an_absent_file_and_another_kind_of_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not an index at all, whatever it is called")
    for name, problem in (("notes.txt", "not recognized"), ("none.faiss", "No such file")):
        with pytest.raises(ReferenceSetError, match=problem):
            open_faiss(tmp_path / name)


def test_the_files_of_an_object_store_are_fetched(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    vectors, ids = unit_vectors(400), np.arange(400)
    shard = write(Folder.at(tmp_path), "IVF8,SQ8", vectors, ids)
    expected = Searcher(Folder.at(tmp_path), [shard]).search(vectors[:5], 3, SearchParams(8, 9))
    remote = Searcher(Folder(f"file://{tmp_path}"), [shard])
    assert remote.shards[0].vectors_ND.filename.parent == remote._cache
    for found, whole in zip(remote.search(vectors[:5], 3, SearchParams(8, 9)), expected, strict=True):
        np.testing.assert_array_equal(found, whole)
    with temporary_folder() as other:
        assert sorted(temporary.iterdir()) == sorted([remote._cache, other])  # as long as the index is open
    del remote
    assert list(temporary.iterdir()) == []


def test_no_table_of_distances_is_kept(tmp_path):
    """faiss makes one whenever it opens residual codes."""
    shard = write(Folder.at(tmp_path), "PCAR16,IVF8,PQ8x4fsr", unit_vectors(1500), np.arange(1500))
    table = [
        faiss.downcast_index(faiss.extract_index_ivf(index)).precomputed_table.size()
        for index in (faiss.read_index(str(tmp_path / shard.name)), open_faiss(tmp_path / shard.name))
    ]
    assert table == [8 * 8 * 16, 0]
