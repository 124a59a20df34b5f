import faiss
import numpy as np
import pytest

from scgpt_ray.errors import ConfigError
from scgpt_ray.index.factory import (
    bytes_per_vector,
    choose_factory,
    default_shards,
    empty_index,
    index_bytes,
    training_size,
    with_lists,
)


@pytest.mark.parametrize(
    ("n", "budget", "target", "expected"),
    [
        (0, None, 0.95, "Flat"),
        (1, None, 0.95, "Flat"),
        (200_000, None, 0.95, "Flat"),
        (200_001, None, 0.95, "PCAR80,IVF2048,PQ40x4fsr"),
        (1_000_000, None, 0.98, "PCAR80,IVF4096_HNSW32,PQ40x4fsr"),
        (1_000_000, None, 0.99, "PCAR96,IVF4096_HNSW32,PQ48x4fsr"),
        (5_000_000, None, 0.95, "PCAR80,IVF4096_HNSW32,PQ40x4fsr"),
        (200_000, 200_000_000, 0.95, "PCAR80,IVF2048,PQ40x4fsr"),
        (1_000_000, 29_000_000, 0.99, "PCAR64,IVF4096_HNSW32,PQ32x4fsr"),
        (100_000_000, 2_000_000_000, 0.95, "PCAR32,IVF16384_HNSW32,PQ16x4fsr"),
    ],
)
def test_the_most_faithful_index_that_is_called_for_and_fits_is_chosen(n, budget, target, expected):
    assert choose_factory(n, 512, budget, 1, target) == expected


@pytest.mark.parametrize(
    ("n", "shards", "lists"),
    [(0, 1, 1), (1, 1, 1), (2_000_000, 1, 4096), (2_000_001, 2, 4096), (5_000_000, 3, 4096), (8_000_001, 4, 4096),
     (33_000_000, 4, 8192), (40_000_001, 5, 8192), (100_000_000, 10, 16384)],
)  # fmt: skip
def test_shards_and_lists_grow_so_that_a_cell_takes_no_more_memory(n, shards, lists):
    assert default_shards(n) == shards
    factory = choose_factory(n, 512, None, shards)
    if n > 200_000:
        assert f",IVF{lists}_HNSW32," in factory
        assert index_bytes(factory, n, 512, shards) <= 32 * n


@pytest.mark.parametrize("n", [250_000, 1_000_000, 30_000_000])
def test_the_lists_do_not_depend_on_the_shards(n):
    assert len({choose_factory(n, 512, None, shards) for shards in (1, 4, 50)}) == 1


def test_narrow_vectors_are_not_widened():
    assert choose_factory(300_000, 64) == "PCAR64,IVF2048,PQ32x4fsr"
    assert choose_factory(300_000, 17) == "PCAR16,IVF2048,PQ8x4fsr"


@pytest.mark.parametrize("n", [1, 1_000, 150_000, 3_000_000])
def test_the_choice_fits_the_budget_and_nothing_more_faithful_does(n):
    order = ["Flat", "PQ48x4fsr", "PQ40x4fsr", "PQ32x4fsr", "PQ16x4fsr"]
    sizes = {}
    for budget in np.geomspace(16 * n + 3_000, 4_000 * n + 1e9, 25).astype(int).tolist():
        try:
            factory = choose_factory(n, 512, budget, 1, 0.99)
        except ConfigError:
            assert not sizes, "a larger budget must not be refused where a smaller one was enough"
            continue
        sizes[order.index(factory.rsplit(",", 1)[-1])] = index_bytes(factory, n, 512)
        assert index_bytes(factory, n, 512) <= budget
    assert list(sizes) == sorted(sizes, reverse=True)
    assert list(sizes.values()) == sorted(sizes.values())


def test_no_budget_is_met_by_a_lie():
    with pytest.raises(ConfigError, match=r"1,000 bytes is too small for 1,000,000 vectors.*at least 18,097,152"):
        choose_factory(1_000_000, 512, 1_000)


def test_every_shard_has_its_own_centroids_unless_lists_are_merged():
    one, ten = (index_bytes("IVF4096,SQ8", 1_000_000, 512, n_shards) for n_shards in (1, 10))
    assert one == 1_000_000 * 520 + 4096 * 2048
    assert ten - one == 9 * 4096 * 2048
    one, ten = (index_bytes("PCAR80,IVF4096_HNSW32,PQ40x4fsr", 10**6, 512, n_shards) for n_shards in (1, 10))
    assert one == ten == 10**6 * 28 + 4096 * (4 * 80 + 256 + 16 * 20)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("Flat", 2048),
        ("IVF16,SQ8", 520),
        ("PCAR80,IVF16,PQ40x4fsr", 28),
        ("PCAR96,IVF16_HNSW32,PQ48x4fsr", 32),
        ("PCA64,IVF16,PQ16", 24),
    ],
)
def test_bytes_per_vector(factory, expected):
    assert bytes_per_vector(factory, 512) == expected


def test_the_estimate_is_what_faiss_writes():
    vectors = np.random.default_rng(0).standard_normal((20_000, 64), np.float32)
    for factory in ("Flat", "IVF64,SQ8", "PCAR64,IVF64,PQ32x4fsr"):
        index = empty_index(factory, 64)
        index.train(vectors[:4000])
        index.add(vectors)
        written = faiss.serialize_index(index).nbytes
        # In a small index PCA and codebook show.
        assert written == pytest.approx(index_bytes(factory, len(vectors), 64), rel=0.08)


@pytest.mark.parametrize("lists", ["IVF16", "IVF16_HNSW32"])
@pytest.mark.parametrize("width", [32, 16])
def test_faiss_builds_every_form_that_can_be_chosen_at_small_size(lists, width):
    vectors = np.random.default_rng(1).standard_normal((700, 32), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = empty_index(f"PCAR{width},{lists},PQ{width // 2}x4fsr", 32)
    assert index.metric_type == faiss.METRIC_L2
    index.train(vectors)
    index.add(vectors)
    faiss.ParameterSpace().set_index_parameter(index, "nprobe", 16)
    distances, rows = index.search(vectors, 20)
    assert (rows == np.arange(700)[:, None]).any(axis=1).mean() > 0.98
    assert (np.diff(distances) >= 0).all()


@pytest.mark.parametrize(
    ("factory", "n", "expected"),
    [("Flat", 9, "Flat"), ("PCA64,IVF16384_HNSW32,PQ16", 100_000, "PCA64,IVF2048_HNSW32,PQ16"),
     ("IVF1000,SQ8", 10**6, "IVF1000,SQ8"), ("IVF8,SQ8", 3, "IVF1,SQ8")],
)  # fmt: skip
def test_no_more_lists_than_can_be_trained(factory, n, expected):
    assert with_lists(factory, n) == expected


@pytest.mark.parametrize("n", [1, 39, 78, 5_000, 199_999, 200_001, 4_000_000, 6_000_000])
@pytest.mark.parametrize("budget", [None, 100, 40, 28])
def test_what_is_chosen_is_accepted_and_trainable(n, budget):
    factory = choose_factory(n, 512, None if budget is None else n * budget + 10**6 + n // 50 * 900)
    empty_index(factory, 512)
    index = empty_index(factory, 512)
    if not index.is_trained:
        assert training_size(factory, n, 512) >= 39 * faiss.extract_index_ivf(index).nlist


@pytest.mark.parametrize(
    ("factory", "n", "expected"),
    [
        ("Flat", 10**6, 0),
        ("IVF16,SQ8", 10**6, 10_000),
        ("IVF16,SQ8", 700, 700),
        ("IVF1024,SQ8", 10**6, 256 * 1024),
        ("IVF4096,SQ8", 10**7, 500_000),
        ("IVF8192,SQ8", 10**7, 64 * 8192),
        ("IVF65536_HNSW32,SQ8", 10**8, 64 * 65536),
    ],
)
def test_training_size(factory, n, expected):
    assert training_size(factory, n, 512) == expected


@pytest.mark.parametrize(("budget", "expected"), [(10**12, 500_000), (300_000 * 2048, 300_000), (1, 39 * 2048)])
def test_a_budget_bounds_the_training_sample_down_to_what_the_lists_need(budget, expected):
    assert training_size("IVF2048,SQ8", 10**6, 512, budget) == expected


@pytest.mark.parametrize("factory", ["", "nonsense", "ivf16,sq8", "IVF16,PQ7", "IVF-1,Flat", "IDMap,Flat"])
def test_a_bad_factory_is_refused_in_one_line(factory):
    with pytest.raises(ConfigError, match=r"^--factory") as caught:
        empty_index(factory, 32)
    assert "\n" not in str(caught.value)
    assert "faiss::" not in str(caught.value)


def test_a_factory_without_lists_is_refused():
    with pytest.raises(ConfigError, match="IVF0"):
        empty_index("IVF0,Flat", 32)


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "HNSW32", "PCA16,Flat", "IVF4,SQ8,Refine(Flat)", "PCA16,IVF4,Flat"])
def test_any_index_numbers_its_rows(factory):
    vectors = np.random.default_rng(2).standard_normal((200, 32), np.float32)
    index = empty_index(factory, 32)
    index.train(vectors)
    index.add(vectors[:150])
    index.add(vectors[150:])
    assert index.search(vectors[[3, 170]], 1)[1].ravel().tolist() == [3, 170]
