"""T-tests over replicates: exact cases of both designs, and scipy on the means as a twin."""

import numpy as np
import pytest
from scipy import stats

from scgpt_ray.evaluation.factors.contrast import contrasts

RANDOM = np.random.default_rng(0)


def column(*values):
    return np.array(values, float)[:, None]


def test_replicates_that_have_both_levels_are_paired():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3)."""
    values, level = column(5, 6, 1, 3, 8, 11), np.array([0, 1] * 3)
    (found,) = contrasts(values, np.repeat([7, 3, 9], 2), level)
    assert (found.level, found.is_paired, found.n_level, found.n_others) == (1, True, 3, 3)
    assert found.estimate_F == [2]
    assert found.p_F[0] == pytest.approx(2 * stats.t.sf(2 * np.sqrt(3), 2))
    assert found.half_width_F(0.05)[0] == pytest.approx(stats.t.isf(0.025, 2) / np.sqrt(3))


def test_replicates_of_one_level_each_are_not_paired():
    """Two groups of variance 1 each, means 2 and 7: standard error sqrt(2 / 3)."""
    (found,) = contrasts(column(1, 6, 2, 7, 3, 8), np.arange(6), np.array([0, 1] * 3))
    assert (found.is_paired, found.n_level, found.n_others) == (False, 3, 3)
    assert found.estimate_F == [5]
    assert found.p_F[0] == pytest.approx(2 * stats.t.sf(5 / np.sqrt(2 / 3), 4))
    assert found.half_width_F(0.01)[0] == pytest.approx(stats.t.isf(0.005, 4) * np.sqrt(2 / 3))


def test_the_smallest_difference_with_a_p_value_is_half_the_width_of_the_interval():
    noise = RANDOM.standard_normal(8)
    noise -= np.repeat([noise[:4].mean(), noise[4:].mean()], 4)
    level = np.repeat([0, 1], 4)
    width = contrasts(noise[:, None], np.arange(8), level)[0].half_width_F(0.05)[0]
    for times, is_found in ((0.999, False), (1.001, True)):
        (found,) = contrasts((noise + times * width * level)[:, None], np.arange(8), level)
        assert (found.p_F[0] < 0.05) == is_found


@pytest.mark.parametrize(
    ("replicate", "level", "is_paired", "n_level", "n_others", "is_tested"),
    [
        ([0, 1, 2, 3, 4], [0, 0, 0, 1, 1], False, 2, 3, False),
        ([0, 0, 1, 1], [0, 1, 0, 1], True, 2, 2, False),
        ([0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 0, 0, 1, 1, 1], False, 3, 3, True),  # one has both: left out
        ([0, 0, 1, 1, 2, 3, 4, 5], [0, 1, 0, 1, 0, 0, 1, 1], True, 2, 2, False),
        ([0, 0, 1, 1, 2, 2, 3, 4], [0, 1, 0, 1, 0, 1, 1, 0], True, 3, 3, True),
        ([0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8], [0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 1, 1], True, 3, 3, True),
        ([0, 0, 0], [0, 1, 2], True, 1, 1, False),
    ],
)
def test_which_replicates_are_compared(replicate, level, is_paired, n_level, n_others, is_tested):
    found = contrasts(RANDOM.random((len(level), 2)), np.array(replicate), np.array(level))
    assert {each.is_paired for each in found} == {is_paired}
    assert {(each.n_level, each.n_others) for each in found} == {(n_level, n_others)}
    assert {each.test is not None for each in found} == {is_tested}


def test_each_of_several_levels_against_the_means_of_the_others():
    values, level = RANDOM.standard_normal((12, 3)), np.tile([0, 1, 2], 4)
    found = contrasts(values, np.repeat(np.arange(4), 3), level)
    assert [each.level for each in found] == [0, 1, 2]
    others = (values[level == 0] + values[level == 1]) / 2
    np.testing.assert_allclose(found[2].estimate_F, (values[level == 2] - others).mean(axis=0))
    np.testing.assert_allclose(found[2].p_F, stats.ttest_rel(values[level == 2], others).pvalue)


def test_levels_without_enough_replicates_are_not_compared():
    level = np.array([0, 0, 0, 1, 1, 1, 2])
    assert [each.level for each in contrasts(RANDOM.random((7, 1)), np.arange(7), level)] == [0, 1]
    assert contrasts(RANDOM.random((7, 1)), np.arange(7), level * 0) == []


def test_what_does_not_vary():
    values = np.array([[1, 2], [1, 2], [1, 2], [1, 3], [1, 3], [1, 3]], float)
    (found,) = contrasts(values, np.arange(6), np.repeat([0, 1], 3))
    assert found.p_F.tolist() == [1, 0]
    assert found.half_width_F(0.05).tolist() == [0, 0]
