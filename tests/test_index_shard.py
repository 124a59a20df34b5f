"""Template and shards: training, filling, opening."""

from itertools import pairwise

import faiss
import numpy as np
import pytest

from scgpt_ray.errors import ConfigError, InputError, ReferenceSetError
from scgpt_ray.index.search import set_threads
from scgpt_ray.index.shard import build_shard, open_shard
from scgpt_ray.index.template import nlist_of, open_template, train


def unit_vectors(n, d=32, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, d), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


FACTORIES = ["Flat", "IVF8,SQ8", "IVF8_HNSW32,SQ8", "RR32,IVF8_HNSW32,RaBitQ4", "RR32,IVF8,RaBitQ"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_training_is_a_function_of_sample_and_seed(factory):
    sample = unit_vectors(1000)
    set_threads(2)
    first = train(sample, factory, seed=3)
    set_threads(1)
    assert train(sample, factory, seed=3) == first
    assert nlist_of(first) == (1 if factory == "Flat" else 8)
    if factory != "Flat":
        assert train(sample, factory, seed=4) != first


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_template_is_empty_trained_and_for_inner_product(factory):
    index = open_template(train(unit_vectors(400), factory, seed=0))
    assert (index.ntotal, index.is_trained, index.metric_type) == (0, True, faiss.METRIC_INNER_PRODUCT)


def test_the_graph_over_the_centroids_finds_the_nearest():
    sample = unit_vectors(4000)
    index = open_template(train(sample, "IVF64_HNSW32,SQ8", seed=0))
    lists = faiss.extract_index_ivf(index)
    centroids = faiss.downcast_index(lists.quantizer).reconstruct_n(0, 64)
    assert lists.quantizer.ntotal == 64
    nearest = lists.quantizer.search(sample, 1)[1][:, 0]
    assert (nearest == (sample @ centroids.T).argmax(axis=1)).mean() > 0.99


def test_too_few_cells_for_the_lists_are_refused():
    with pytest.raises(
        InputError, match=r"IVF16,SQ8: 100 cells to train 16 inverted lists.*624 in all.*at most 2 lists"
    ):
        train(unit_vectors(100), "IVF16,SQ8", seed=0)


def test_too_few_cells_for_a_codebook_are_refused():
    with pytest.raises(InputError, match="PQ8 cannot be trained on 100 cells"):
        train(unit_vectors(100), "PQ8", seed=0)


def test_a_bad_factory_is_refused_before_training():
    with pytest.raises(ConfigError, match="nonsense"):
        train(unit_vectors(100), "nonsense", seed=0)


def test_flat_needs_no_sample():
    template = train(np.empty((0, 32), np.float32), "Flat", seed=0)
    assert open_template(template).d == 32


@pytest.mark.parametrize("factory", FACTORIES)
def test_blocks_and_one_block_give_the_same_bytes(factory):
    vectors, ids = unit_vectors(500), np.arange(500) * 7 + 2**40
    template = train(vectors, factory, seed=0)
    whole = build_shard(template, [(ids, vectors)])
    cut = [0, 1, 1, 200, 499, 500]
    blocks = [(ids[a:b], vectors[a:b]) for a, b in pairwise(cut)]
    assert build_shard(template, iter(blocks)) == whole


def test_a_read_only_and_a_strided_block_are_welcome():
    vectors, ids = unit_vectors(100), np.arange(200)[::2]
    vectors.setflags(write=False)
    shard = open_shard(build_shard(train(vectors, "Flat", seed=0), [(ids[::2], vectors[::2])]))
    assert shard.search(vectors[:1], 1)[1] == [[0]]


def test_the_template_is_left_as_it_was():
    vectors = unit_vectors(400)
    template = train(vectors, "IVF8,SQ8", seed=0)
    assert open_shard(build_shard(template, [(np.arange(400), vectors)])).ntotal == 400
    assert open_template(template).ntotal == 0


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("n", [0, 1, 300])
def test_a_shard_is_the_same_from_a_path_and_from_bytes(factory, n, tmp_path):
    vectors = unit_vectors(400)
    content = build_shard(train(vectors, factory, seed=0), [(np.arange(n), vectors[:n])])
    path = tmp_path / "shard-00000.faiss"
    path.write_bytes(content)
    mapped, private = open_shard(path), open_shard(content)
    assert mapped.ntotal == private.ntotal == n
    for found, expected in zip(mapped.search(vectors, 5), private.search(vectors, 5), strict=True):
        np.testing.assert_array_equal(found, expected)
    plain = faiss.read_index(str(path))
    np.testing.assert_array_equal(plain.search(vectors, 5)[1], private.search(vectors, 5)[1])


def test_a_path_given_as_text_is_a_path(tmp_path):
    (tmp_path / "a.faiss").write_bytes(train(unit_vectors(10), "Flat", seed=0))
    assert open_shard(str(tmp_path / "a.faiss")).ntotal == 0


@pytest.mark.parametrize("keep", [0, 3, 50, 1000, -8])
def test_a_torn_file_is_refused(keep, tmp_path):
    vectors = unit_vectors(400)
    torn = build_shard(train(vectors, "IVF8,SQ8", seed=0), [(np.arange(400), vectors)])[:keep]
    (tmp_path / "torn.faiss").write_bytes(torn)
    for source in (tmp_path / "torn.faiss", torn):
        with pytest.raises(ReferenceSetError, match="cannot be read") as caught:
            open_shard(source)
        assert "\n" not in str(caught.value)


def test_an_absent_file_and_another_kind_of_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not an index at all, whatever it is called")
    for name, problem in (("notes.txt", "not recognized"), ("none.faiss", "No such file")):
        with pytest.raises(ReferenceSetError, match=problem):
            open_shard(tmp_path / name)
