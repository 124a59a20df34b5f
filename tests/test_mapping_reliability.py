import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.mapping.reliability import Reliability, reliability


def test_bins_and_error_by_hand():
    curve = reliability(np.array([0.1, 0.0, 0.95, 1.0, 0.5]), np.array([False, True, True, True, False]))
    assert [vars(part) for part in curve.bins] == [
        {"cells": 2, "confidence": 0.05, "accuracy": 0.5},
        {"cells": 1, "confidence": 0.5, "accuracy": 0.0},
        {"cells": 2, "confidence": 0.975, "accuracy": 1.0},
    ]
    assert curve.ece == pytest.approx((2 * 0.45 + 0.5 + 2 * 0.025) / 5)
    assert curve.table().splitlines()[-1] == "expected calibration error 0.290 over 5 cells"
    assert Reliability.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve


def test_an_edge_belongs_to_the_lower_bin_whatever_the_rounding():
    shares = np.array([3 / 10, 0.1 + 0.2, np.float32(0.3)])
    assert [part.cells for part in reliability(shares, np.ones(3, bool)).bins] == [3]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 12))
def test_agrees_with_a_loop(cells, n_bins):
    confidence, right = np.array([c for c, _ in cells]), np.array([r for _, r in cells])
    gap = total = 0
    for b in range(n_bins):
        inside = [
            (c, r) for c, r in cells if b < round(c * n_bins, 6) <= b + 1 or (b == 0 and round(c * n_bins, 6) <= 0)
        ]
        if inside:
            total += len(inside)
            gap += len(inside) * abs(np.mean([c for c, _ in inside]) - np.mean([r for _, r in inside]))
    curve = reliability(confidence, right, n_bins)
    assert curve.n_cells == total == len(cells)
    assert curve.ece == pytest.approx(gap / total, abs=1e-12)
    assert 0 <= curve.ece <= 1


def test_a_confidence_that_is_always_kept_has_no_error():
    confidence = np.repeat([0.25, 0.75], 40)
    right = np.concatenate([np.arange(40) < 10, np.arange(40) < 30])
    assert reliability(confidence, right).ece == 0
