import faiss
import numpy as np
import pytest

from scgpt_ray.errors import ConfigError
from scgpt_ray.index.factory import (
    bytes_per_vector,
    check_factory,
    choose_factory,
    empty_index,
    index_bytes,
    training_size,
)


@pytest.mark.parametrize(
    ("n", "budget", "expected"),
    [
        (0, None, "Flat"),
        (1, None, "Flat"),
        (200_000, None, "Flat"),
        (200_001, None, "IVF2048,SQ8"),
        (1_000_000, None, "IVF4096,SQ8"),
        (5_000_000, None, "IVF8192,SQ8"),
        (5_000_001, None, "IVF65536_HNSW32,SQ8"),
        (50_000_001, None, "IVF262144_HNSW32,SQ8"),
        (200_000, 200_000_000, "IVF2048,SQ8"),
        (1_000_000, 400_000_000, "RR512,IVF4096,RaBitQ4"),
        (1_000_000, 200_000_000, "RR512,IVF4096,RaBitQ2"),
        (100_000_000, 9_000_000_000, "RR512,IVF262144_HNSW32,RaBitQ"),
    ],
)
def test_the_most_faithful_index_that_fits_is_chosen(n, budget, expected):
    assert choose_factory(n, 512, budget) == expected


@pytest.mark.parametrize("n", [1, 1_000, 150_000, 3_000_000])
def test_the_choice_fits_the_budget_and_nothing_more_faithful_does(n):
    order = ["Flat", "SQ8", "RaBitQ4", "RaBitQ2", "RaBitQ"]
    sizes = {}
    for budget in np.geomspace(80 * n + 3_000, 4_000 * n + 1e9, 25).astype(int).tolist():
        try:
            factory = choose_factory(n, 512, budget)
        except ConfigError:
            assert not sizes, "a larger budget must not be refused where a smaller one was enough"
            continue
        sizes[order.index(factory.rsplit(",", 1)[-1])] = index_bytes(factory, n, 512)
        assert index_bytes(factory, n, 512) <= budget
    assert list(sizes) == sorted(sizes, reverse=True)
    assert list(sizes.values()) == sorted(sizes.values())


def test_no_budget_is_met_by_a_lie():
    with pytest.raises(ConfigError, match=r"1,000 bytes is too small for 1,000,000 vectors.*at least 88,388,608"):
        choose_factory(1_000_000, 512, 1_000)


def test_every_shard_has_its_own_centroids():
    one, ten = (index_bytes("IVF4096,SQ8", 1_000_000, 512, n_shards) for n_shards in (1, 10))
    assert one == 1_000_000 * 520 + 4096 * 2048
    assert ten - one == 9 * 4096 * 2048


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("Flat", 2056),
        ("IVF16,SQ8", 520),
        ("RR512,IVF16,RaBitQ4", 284),
        ("RR512,IVF16_HNSW32,RaBitQ2", 156),
        ("RR512,IVF16,RaBitQ", 80),
    ],
)
def test_bytes_per_vector(factory, expected):
    assert bytes_per_vector(factory, 512) == expected


def test_the_estimate_is_what_faiss_writes():
    vectors = np.random.default_rng(0).standard_normal((20_000, 64), np.float32)
    for factory in ("Flat", "IVF64,SQ8", "RR64,IVF64,RaBitQ4"):
        index = empty_index(factory, 64)
        index.train(vectors[:4000])
        index.add_with_ids(vectors, np.arange(len(vectors)))
        written = faiss.serialize_index(index).nbytes
        assert written == pytest.approx(index_bytes(factory, len(vectors), 64), rel=0.03)


@pytest.mark.parametrize("codec", ["SQ8", "RaBitQ4", "RaBitQ2", "RaBitQ"])
@pytest.mark.parametrize("lists", ["IVF16", "IVF16_HNSW32"])
def test_faiss_builds_every_form_that_can_be_chosen_at_small_size(lists, codec):
    vectors = np.random.default_rng(1).standard_normal((700, 32), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    factory = f"{lists},{codec}" if codec == "SQ8" else f"RR32,{lists},{codec}"
    index = empty_index(factory, 32)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(700) + 10**12)
    faiss.ParameterSpace().set_index_parameter(index, "nprobe", 16)
    scores, ids = index.search(vectors, 3)
    assert (ids[:, 0] == np.arange(700) + 10**12).mean() > 0.98
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("n", [1, 39, 78, 5_000, 199_999, 200_001, 4_000_000, 6_000_000])
@pytest.mark.parametrize("budget", [None, 300, 180, 100])
def test_what_is_chosen_is_accepted_and_trainable(n, budget):
    factory = choose_factory(n, 512, None if budget is None else n * budget + 10**6 + n // 50 * 300)
    check_factory(factory, 512)
    index = empty_index(factory, 512)
    if not index.is_trained:
        assert training_size(factory, n, 512) >= 39 * faiss.extract_index_ivf(index).nlist


@pytest.mark.parametrize(
    ("factory", "n", "expected"),
    [
        ("Flat", 10**6, 0),
        ("IVF16,SQ8", 10**6, 10_000),
        ("IVF16,SQ8", 700, 700),
        ("IVF2048,SQ8", 10**6, 256 * 2048),
        ("IVF8192,SQ8", 10**7, 1_000_000),
        ("IVF65536_HNSW32,SQ8", 10**8, 64 * 65536),
    ],
)
def test_training_size(factory, n, expected):
    assert training_size(factory, n, 512) == expected


@pytest.mark.parametrize("factory", ["", "nonsense", "ivf16,sq8", "IVF16,PQ7", "LSH", "IVF-1,Flat", "HNSW32,RaBitQ"])
def test_a_bad_factory_is_refused_in_one_line(factory):
    with pytest.raises(ConfigError, match=r"^--factory") as caught:
        check_factory(factory, 32)
    assert "\n" not in str(caught.value)
    assert "faiss::" not in str(caught.value)


def test_a_factory_without_lists_is_refused():
    with pytest.raises(ConfigError, match="IVF0"):
        check_factory("IVF0,Flat", 32)


@pytest.mark.parametrize(
    "factory",
    ["Flat", "SQ8", "IDMap,Flat", "HNSW32", "PCA16,Flat", "IVF4,SQ8,Refine(Flat)", "PCA16,IVF4,Flat"],
)
def test_any_index_takes_ids(factory):
    vectors = np.random.default_rng(2).standard_normal((200, 32), np.float32)
    index = empty_index(factory, 32)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(200) + 5_000_000_000)
    assert index.search(vectors[:4], 1)[1].min() >= 5_000_000_000
