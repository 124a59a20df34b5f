import numpy as np

from scgpt_ray.evaluation.labels.nearest import nearest_labels

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
