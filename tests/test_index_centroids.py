"""k-means: Lloyd's rounds, the same for any number of threads."""

import faiss
import numpy as np
import pytest

from scgpt_ray.index import centroids
from scgpt_ray.index.centroids import centroids_of


def clouds(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((k, d)).astype(np.float32)
    return centres[rng.integers(k, size=n)] + rng.standard_normal((n, d)).astype(np.float32) / 2


def error(sample, found):
    """Mean squared distance to the nearest centroid."""
    return ((sample[:, None] - found[None]) ** 2).sum(axis=2).min(axis=1).mean()


def lloyd(sample, found, rounds):
    """Slow twin: by definition, in float64; no list may become empty."""
    for _ in range(rounds):
        nearest = ((sample[:, None].astype(np.float64) - found[None]) ** 2).sum(axis=2).argmin(axis=1)
        found = np.stack([sample[nearest == place].mean(axis=0, dtype=np.float64) for place in range(len(found))])
    return found


def test_the_rounds_are_lloyds(monkeypatch):
    monkeypatch.setattr(centroids, "_BLOCK_ROWS", 70)
    sample = clouds(500, 8, 12)
    start = centroids_of(sample, 12, rounds=0, seed=5, threads=1)
    assert {tuple(row) for row in start.tolist()} <= {tuple(row) for row in sample.tolist()}
    np.testing.assert_allclose(
        centroids_of(sample, 12, rounds=6, seed=5, threads=2), lloyd(sample, start, 6), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("n", [9_000, 4_097])
def test_the_number_of_threads_and_the_last_block_make_no_difference(n):
    sample = clouds(n, 48, 64)  # enough for faiss to multiply matrices
    found = centroids_of(sample, 64, rounds=5, seed=0, threads=1)
    np.testing.assert_array_equal(found, centroids_of(sample, 64, rounds=5, seed=0, threads=3))
    assert not np.array_equal(found, centroids_of(sample, 64, rounds=5, seed=1, threads=1))


def test_it_is_as_good_as_that_of_faiss():
    sample = clouds(3_000, 16, 1_000)
    ours, theirs = [], []
    for seed in range(3):
        own = faiss.Kmeans(16, 40, niter=10, seed=seed)
        own.train(sample)
        theirs.append(error(sample, own.centroids))
        ours.append(error(sample, centroids_of(sample, 40, rounds=10, seed=seed, threads=2)))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.01)


def test_an_empty_list_starts_again_from_a_vector():
    sample = np.repeat(np.eye(3, 4, dtype=np.float32), [500, 2, 1], axis=0)
    found = centroids_of(sample, 6, rounds=20, seed=0, threads=1)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)  # one that is left empty is the sum of nothing
