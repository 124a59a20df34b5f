import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.evaluation.labels.selective_accuracy import selective_accuracy


def test_the_curve_by_hand():
    curve = selective_accuracy(np.array([0.2, 0.9, 0.6, 0.8]), np.array([False, True, False, True]))
    assert curve.share.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.accuracy.tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert curve.area == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    # Four fifths of four cells are four cells.
    assert [curve.at(share) for share in (1.0, 0.9, 0.8, 0.5, 0.01)] == pytest.approx([0.5, 0.5, 0.5, 1, 1])
    plain = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert plain["accuracy_at"] == {"1": 0.5, "0.9": 0.5, "0.8": 0.5, "0.5": 1.0}
    assert len(plain["curve"]["accuracy"]) == len(plain["curve"]["share"]) == 100


def test_no_confidence_at_all_is_a_flat_line():
    curve = selective_accuracy(np.ones(4), np.array([True, False, True, True]))
    assert curve.accuracy.tolist() == [0.75] * 4


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
def test_equal_confidences_are_the_mean_over_their_orders(cells):
    confidence, right = np.array([c for c, _ in cells]) / 2, np.array([r for _, r in cells])
    expected = []
    for order in itertools.permutations(range(len(cells))):
        ranked = [cells[i] for i in order]
        if [c for c, _ in ranked] == sorted((c for c, _ in ranked), reverse=True):
            expected.append(np.cumsum([r for _, r in ranked]) / np.arange(1, len(cells) + 1))
    np.testing.assert_allclose(selective_accuracy(confidence, right).accuracy, np.mean(expected, axis=0), atol=1e-12)
