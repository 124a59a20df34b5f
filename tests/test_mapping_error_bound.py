import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.mapping.error_bound import CONFIDENCE, error_bound


def bound(wrong, accepted):
    return error_bound(np.array(wrong, np.int64)[:, None], np.array(accepted, np.int64)[:, None])[0]


@pytest.mark.parametrize(
    ("wrong", "accepted", "expected"),
    [
        ([0, 0, 0], [10, 10, 10], 1 / 31),
        ([2, 2, 2], [10, 10, 10], 7 / 31),
        # Equal groups: the jackknife gives the standard error of the mean, and the bound that of Student's
        # t, 1.0607 at 0.8 and 2 degrees of freedom: rates 0, .1, .2, whose deviation is .1.
        ([0, 1, 2], [10, 10, 10], 4 / 31 + 1.0607 * 0.1 * np.sqrt(1 + 1 / 3)),
        # Nothing is known of the difference between groups where one group alone has cells.
        ([0, 0, 0], [10, 0, 0], np.inf),
        ([0, 0, 0], [0, 0, 0], np.inf),
        ([0, 0, 0], [10, 10, 0], 1 / 21),
    ],
)
def test_by_hand(wrong, accepted, expected):
    assert bound(wrong, accepted) == pytest.approx(expected, abs=1e-5)


def test_groups_of_different_size_count_by_their_cells():
    # Without each group in turn: 3 / 30, 1 / 30, 4 / 40.
    without = np.array([3 / 30, 1 / 30, 4 / 40])
    deviation = np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
    assert bound([1, 3, 0], [20, 20, 10]) == pytest.approx(5 / 51 + 1.0607 * deviation * 2, abs=1e-5)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=6))
def test_never_below_the_error(cells):
    wrong, right = np.array(cells).T
    found = bound(wrong, wrong + right)
    assert found > wrong.sum() / max(1, (wrong + right).sum())


def test_a_new_group_is_below_the_bound_as_often_as_promised():
    """Errors of groups vary; the bound of five holds for a sixth."""
    rng, n = np.random.default_rng(0), 4000
    rate = rng.beta(2, 30, (6, n))
    wrong = rng.binomial(100, rate)
    found = error_bound(wrong[:5], np.full((5, n), 100))
    assert (wrong[5] / 100 <= found).mean() == pytest.approx(CONFIDENCE, abs=0.01)
