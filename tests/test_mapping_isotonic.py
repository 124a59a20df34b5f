import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from scgpt_ray.mapping.isotonic import isotonic_blocks


@pytest.mark.parametrize(
    ("values", "outcomes", "blocks"),
    [
        ([1, 2, 3], [0, 1, 0], [(1, 1, 0), (2, 3, 0.5)]),
        ([3, 1, 2], [0, 0, 1], [(1, 1, 0), (2, 3, 0.5)]),
        ([1, 2, 3], [1, 1, 0], [(1, 3, 2 / 3)]),
        ([1, 1, 2], [1, 0, 1], [(1, 1, 0.5), (2, 2, 1)]),
        ([1, 2, 3, 4], [1, 0, 0, 1], [(1, 3, 1 / 3), (4, 4, 1)]),
        ([5], [1], [(5, 5, 1)]),
    ],
)
def test_blocks_by_hand(values, outcomes, blocks):
    found = isotonic_blocks(np.array(values, float), np.array(outcomes, float))
    assert list(zip(*(column.tolist() for column in found), strict=True)) == blocks


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=1, max_size=40))
def test_agrees_with_scikit_learn(cells):
    values, outcomes = np.array(cells, float).T
    least, greatest, level = isotonic_blocks(values, outcomes)
    assert (np.diff(level) > 0).all()
    assert (least[1:] > greatest[:-1]).all()
    distinct = np.unique(values)
    means = [outcomes[values == value].mean() for value in distinct]
    weights = [float((values == value).sum()) for value in distinct]
    expected = isotonic_regression(means, sample_weight=weights)
    found = [level[np.searchsorted(greatest, value)] for value in distinct]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_no_monotone_curve_is_nearer():
    outcomes = np.array([0, 1, 0, 1, 1, 0], float)
    least, greatest, level = isotonic_blocks(np.arange(6.0), outcomes)
    fitted = level[np.searchsorted(greatest, np.arange(6.0))]
    quarters = [q / 4 for q in range(5)]
    best = min(((outcomes - curve) ** 2).sum() for curve in itertools.combinations_with_replacement(quarters, 6))
    assert ((outcomes - fitted) ** 2).sum() <= best
    assert least[0] == 0
