"""Grown embeddings: how many, from what, and with whose neighbourhood."""

import numpy as np
import pytest

from scgpt_ray.benchmark.synthetic_embeddings import Growth, contrast, intrinsic_dimension
from scgpt_ray.index.search import exact_search


def in_planes(n, d=48, plane=6, seed=0):
    """Cells of five types, each in a plane of its own, with a little noise."""
    rng = np.random.default_rng(seed)
    centres, planes = rng.standard_normal((5, d)), rng.standard_normal((5, plane, d)) / np.sqrt(plane)
    kind = rng.integers(0, 5, n)
    vectors = 3 * centres[kind] + np.einsum("np,npd->nd", rng.standard_normal((n, plane)), planes[kind])
    vectors += 0.02 * rng.standard_normal((n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), kind


@pytest.fixture(scope="module")
def base():
    return in_planes(1500)


@pytest.mark.parametrize("n", [0, 1, 1000, 40_000])
def test_as_many_unit_vectors_as_asked_the_same_for_a_seed(base, n):
    growth = Growth.of(base[0])
    grown = np.concatenate([np.empty((0, 48), np.float32), *growth.blocks(n, seed=1)])
    assert grown.shape == (n, 48)
    assert grown.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(grown, axis=1), 1, atol=1e-5)
    again = np.concatenate([np.empty((0, 48), np.float32), *growth.blocks(n, seed=1)])
    np.testing.assert_array_equal(again, grown)
    if n:
        assert not np.array_equal(next(growth.blocks(n, seed=2)), next(growth.blocks(n, seed=1)))
        assert len(np.unique(grown, axis=0)) == n


def test_the_grown_keep_type_dimension_and_contrast(base):
    vectors, kind = base
    grown = np.concatenate(list(Growth.of(vectors).blocks(20_000, seed=0)))
    nearest, scores = exact_search([(np.arange(len(vectors)), vectors)], grown, 10)
    assert (kind[nearest] == kind[nearest[:, :1]]).mean() > 0.99, "a cell's descendants are among its type"
    rows = np.arange(0, 1500, 5)
    assert intrinsic_dimension(vectors, rows) == pytest.approx(6, abs=2)
    assert intrinsic_dimension(grown, rows) == pytest.approx(intrinsic_dimension(vectors, rows), rel=0.5)
    assert contrast(grown, rows) < 1.2 * contrast(vectors, rows) < 0.6
    assert (scores[:, 0] < 1 - 1e-6).mean() > 0.9, "new cells, not copies"


def test_intrinsic_dimension_of_known_spaces():
    rng = np.random.default_rng(0)
    for dimension in (2, 5, 10):
        flat = np.zeros((4000, 64))
        flat[:, 0] = 30
        flat[:, 1 : dimension + 1] = rng.uniform(-1, 1, (4000, dimension))
        flat = (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float64)
        assert intrinsic_dimension(flat, np.arange(300)) == pytest.approx(dimension, rel=0.35)
