import numpy as np
import pytest
from scipy import sparse

from scgpt_ray.evaluation.labels.baseline import majority, pca_knn


def cells(n, seed=0):
    """Logs of counts of n cells of three types, whose profiles are the same for all seeds, and the types."""
    random = np.random.default_rng([seed, n])
    types = random.integers(3, size=n)
    profiles = np.random.default_rng(1).gamma(1.0, size=(3, 40))
    return np.log1p(random.poisson(profiles[types] * 3)), np.array(["A", "B", "C"], object)[types]


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_types_that_differ_are_told_apart(kind):
    reference, labels = cells(300)
    query, truth = cells(200, seed=1)
    predicted, _ = pca_knn(kind(reference), labels, kind(query), k=10, seed=0)
    assert (predicted == truth).mean() > 0.9
    np.testing.assert_array_equal(pca_knn(kind(reference), labels, kind(query), k=10, seed=0)[0], predicted)


def test_sparse_and_dense_agree():
    reference, labels = cells(150)
    query, _ = cells(60, seed=1)
    dense = pca_knn(reference, labels, query, k=5, seed=0)
    compressed = pca_knn(sparse.csr_matrix(reference), labels, sparse.csr_matrix(query), k=5, seed=0)
    np.testing.assert_array_equal(dense[0], compressed[0])


def test_a_reference_smaller_than_k_and_components():
    reference, labels = cells(4)
    assert pca_knn(reference, labels, reference, k=10, seed=0)[0].shape == (4,)


def test_the_majority_of_the_reference():
    labels, share = majority({"T": 2, "B": 2, "NK": 1, None: 9}, 3)
    assert labels.tolist() == ["B"] * 3
    assert share.tolist() == [0.4] * 3


def test_the_share_of_the_neighbours_that_agree():
    rng = np.random.default_rng(0)
    reference = np.repeat(np.eye(6)[:2] * 9, 20, axis=0) + rng.normal(scale=0.1, size=(40, 6))
    names = np.repeat(np.array(["B", "T"], object), 20)
    names[:5] = "T"
    labels, share = pca_knn(reference, names, np.eye(6)[:2] * 9, k=20, seed=0)
    assert labels.tolist() == ["B", "T"]
    assert share.tolist() == [0.75, 1.0]
