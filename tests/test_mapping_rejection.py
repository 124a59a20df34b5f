import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.mapping.error_bound import error_bound
from scgpt_ray.mapping.rejection import Thresholds, least_nearness, least_probability

EQUAL = [0.9] * 4 + [0.8] * 4 + [0.7] * 4


@pytest.mark.parametrize(
    ("right", "target", "threshold"),
    [
        # Both groups have the same errors, so that the bound is (wrong + 1) / (accepted + 1).
        ([1] * 12, 1 / 13, 0.7),
        ([1] * 12, 1 / 14, math.inf),
        ([1] * 8 + [0, 1] * 2, 1 / 9, 0.8),
        ([1] * 8 + [0, 1] * 2, 3 / 13, 0.7),
        ([1] * 4 + [0] * 8, 1 / 5, 0.9),
        # Worse at the level above, and better again: most cells are accepted.
        ([0, 1] * 2 + [1] * 8, 3 / 13, 0.7),
        ([0] * 12, 0.9, math.inf),
    ],
)
def test_the_least_probability_that_keeps_the_error(right, target, threshold):
    groups = np.array([0, 0, 1, 1] * 3, np.int32)
    assert least_probability(np.array(EQUAL), np.array(right, bool), groups, target + 1e-12) == threshold


def test_groups_that_differ_raise_the_threshold():
    groups, right = np.array([0, 0, 1, 1] * 3, np.int32), np.ones(12, bool)
    right[8:10] = False  # both in one group
    assert least_probability(np.array(EQUAL), right, groups, 3 / 13 + 1e-12) == 0.8


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=4, max_size=60),
    st.sampled_from([0.1, 0.25, 0.5, 1]),
)
def test_no_other_threshold_accepts_more(cells, target):
    cells = [*cells, (5, True, 0), (5, True, 1)]
    probability, right = np.array([p for p, _, _ in cells]) / 5, np.array([r for _, r, _ in cells])
    group = np.array([g for _, _, g in cells], np.int32)

    def bound(threshold):
        kept = [(right[(group == g) & (probability >= threshold)]) for g in sorted(set(group))]
        return error_bound(
            np.array([[(~r).sum()] for r in kept], np.int64), np.array([[len(r)] for r in kept], np.int64)
        )[0]

    allowed = [t for t in set(probability.tolist()) if bound(t) <= target]
    assert least_probability(probability, right, group, target) == min(allowed, default=math.inf)


def test_nearness_of_a_label_and_of_the_rare_ones():
    # Rate 1/4: T has 7 cells, j = floor(8 / 4) = 2; B has 2, too few; all 9 give j = floor(10 / 4) = 2.
    nearness = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 0.15])
    top = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1], np.int32)
    assert least_nearness(["T", "B"], top, nearness, 0.25) == ({"T": 0.2}, 0.15)
    assert least_nearness(["T", "B"], top[:2], nearness[:2], 0.25) == ({}, None)


@given(st.integers(1, 200), st.sampled_from([0.01, 0.05, 0.2, 0.5]), st.integers(0, 10**6))
def test_at_most_the_requested_share_of_the_cells_is_rejected(n, rate, seed):
    nearness = np.random.default_rng(seed).integers(0, 50, n).astype(float)
    _, least = least_nearness(["T"], np.zeros(n, np.int32), nearness, rate)
    rejected = 0.0 if least is None else (nearness < least).mean()
    assert rejected <= rate


def test_reasons_in_their_order():
    thresholds = Thresholds(0.5, {"T": 0.6}, 0.3)
    reasons = thresholds.reasons(
        ["B", "T"],
        np.array([-1, 1, 1, 0, 0, 1], np.int32),
        np.array([-np.inf, 0.6, 0.59, 0.59, 0.29, 0.9]),
        np.array([0, 0.5, 0.1, 0.9, 0.9, 0.49]),
    )
    assert reasons == ["no neighbour", "", "distance", "", "distance", "confidence"]


def test_without_targets_no_cell_with_a_vote_is_rejected():
    reasons = Thresholds(0.0, {}, None).reasons(
        ["T"], np.array([0, -1], np.int32), np.array([-5.0, -np.inf]), np.array([0.0, 0.0])
    )
    assert reasons == ["", "no neighbour"]
