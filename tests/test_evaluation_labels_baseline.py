import numpy as np
import pytest
from scipy import sparse

from scgpt_ray.evaluation.labels.baseline import majority, nearest_labels, pca_knn


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


REFERENCE = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], np.float32)
LABELS = np.array(["a", "a", "b", "b"], object)


def test_the_nearest_vote():
    labels, share = nearest_labels(REFERENCE, LABELS, np.array([[0.96, 0.28], [-0.28, 0.96]], np.float32), 2)
    assert labels.tolist() == ["a", "b"]
    assert share.tolist() == [1, 1]


def test_fewer_cells_than_neighbours_all_vote():
    labels, share = nearest_labels(REFERENCE[:3], LABELS[:3], np.array([[0, 1]], np.float32), 10)
    assert labels.tolist() == ["a"]
    np.testing.assert_allclose(share, 2 / 3)


@pytest.mark.parametrize(("query", "label"), [(1.9, "C"), (1.6, "C"), (1.4, "B"), (1.1, "B")])
def test_a_tie_goes_to_the_nearer(query, label):
    places, labels = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["A", "B", "C", "D"], object)
    assert nearest_labels(places, labels, np.array([[query]]), 2)[0].tolist() == [label]
    # Of A and D, B and C with a vote each, the sum of squared distances decides, not the order of the names.
    assert nearest_labels(places, labels, np.array([[query]]), 4)[0].tolist() == [label]


def test_which_cells_may_vote_on_which():
    places = np.arange(6.0)[:, None]
    names = np.array(["A", "A", "B", "B", "C", "C"], object)
    everyone, none = np.ones(6, bool), np.zeros(6, bool)
    groups = [(np.array([0, 3]), everyone), (np.array([1]), names != "A"), (np.array([2]), none)]
    labels, share = nearest_labels(places, names, np.array([[0.1], [0.1], [0.1], [4.9]]), 3, groups)
    assert labels.tolist() == ["A", "B", "Unknown", "C"]
    np.testing.assert_allclose(share, [2 / 3, 2 / 3, 0, 2 / 3])
    few, _ = nearest_labels(places, names, np.array([[0.1]]), 3, [(np.array([0]), names == "C")])
    assert few.tolist() == ["C"], "two voters are fewer than three"


def test_unit_vectors_vote_as_by_cosine():
    rng = np.random.default_rng(0)
    reference, queries = (rng.standard_normal((n, 5)) for n in (60, 40))
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    kinds = np.array(["A", "B", "C"], object)[rng.integers(3, size=60)]
    labels, share = nearest_labels(reference, kinds, queries, 4)
    for query, label, part in zip(queries, labels, share, strict=True):
        cosine = reference @ query
        nearest = np.argsort(-cosine)[:4]
        votes = {
            kind: ((kinds[nearest] == kind).sum(), cosine[nearest][kinds[nearest] == kind].sum()) for kind in "ABC"
        }
        assert (label, part) == (max(votes, key=votes.get), votes[label][0] / 4)
