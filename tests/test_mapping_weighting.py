import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scgpt_ray.mapping.weighting import balance_weights, distance_weights


@pytest.mark.parametrize(
    ("codes", "scores", "weights"),
    [
        ([0, 1, 0], [1.0, 0.75, 0.5], [1, 0.5, 0]),
        ([0, 1], [0.5, 0.5], [1, 1]),
        ([0], [0.25], [1]),
        # The nearest and the farthest have no label: they are not the ends of the scale.
        ([-1, 0, 1, 1, -1], [1.0, 0.75, 0.5, 0.25, -np.inf], [0, 1, 0.5, 0, 0]),
        ([-1, -1], [0.5, -np.inf], [0, 0]),
        ([], [], []),
    ],
)
def test_nearer_votes_count_more(codes, scores, weights):
    found = distance_weights(np.array([codes], np.int32), np.array([scores], np.float32))
    assert found.tolist() == [weights]


@given(st.data(), st.integers(1, 8), st.sampled_from([0.25, 2.0]), st.sampled_from([-1.0, 0.0, 3.0]))
def test_scale_and_origin_of_the_score_do_not_matter(data, k, scale, origin):
    scores = data.draw(hnp.arrays(np.int32, (3, k), elements=st.integers(-16, 16))).astype(np.float32)
    codes = data.draw(hnp.arrays(np.int32, (3, k), elements=st.integers(-1, 1)))
    weights = distance_weights(codes, scores)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights.max(axis=1) == (codes != -1).any(axis=1)).all()
    assert (weights[codes == -1] == 0).all()
    np.testing.assert_array_equal(distance_weights(codes, (scores * scale + origin).astype(np.float32)), weights)


def test_every_group_gets_the_same_total():
    cells = np.array([1, 4, 5], np.int64)
    weights = balance_weights(np.array([[0, 1, 2, -1]], np.int32), cells)
    assert weights.tolist() == [[10 / 3, 10 / 12, 10 / 15, 0]]
    assert (weights[0, :3] * cells).tolist() == pytest.approx([10 / 3] * 3)


@given(st.integers(1, 9), st.integers(1, 10**9), st.data())
def test_equal_groups_weigh_one(n_groups, cells, data):
    codes = data.draw(hnp.arrays(np.int32, (2, 5), elements=st.integers(0, n_groups - 1)))
    assert (balance_weights(codes, np.full(n_groups, cells, np.int64)) == 1).all()
