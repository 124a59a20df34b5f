"""Differences between the levels of a factor with the replicate, such as the donor, as the unit: t-tests.

Cells of one donor resemble one another, so a test that counts cells finds differences between any two groups of donors.
Here each replicate contributes one value, or one difference between two levels that it has.

Shape suffixes: U units (a replicate at a level), R replicates, F features (genes, or one).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from scgpt_ray.evaluation.neighbors import groups_of
from scgpt_ray.schema import Int64Array

Float64Array = npt.NDArray[np.float64]

MIN_REPLICATES = 3
"""Replicates per level below which nothing is tested."""

SIGNIFICANCE = 0.05
"""Rate of false claims: of the depth (familywise over levels), of the probe, and false discovery rate of the genes."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """A level against the other levels.

    Attributes:
        level: Number of the level.
        is_paired: Whether differences within replicates are tested (paired t-test), or replicates of the level against
            other replicates (Student's t-test).
        n_level: Replicates with the level.
        n_others: Replicates with other levels; the same ones if paired.
        estimate_F: Difference of the means over replicates, float64 [features].
        test: Result of scipy; None below MIN_REPLICATES.
    """

    level: int
    is_paired: bool
    n_level: int
    n_others: int
    estimate_F: Float64Array
    test: Any

    @property
    def p_F(self) -> Float64Array:
        """Two-sided p values, float64 [features]; 1 where nothing varies."""
        return np.nan_to_num(np.asarray(self.test.pvalue, np.float64), nan=1.0)

    def half_width_F(self, rate: float) -> Float64Array:
        """Half the width of the interval of confidence 1 - `rate`: the smallest difference with p below `rate`."""
        low_F, high_F = self.test.confidence_interval(1 - rate)
        return np.asarray(high_F - low_F, np.float64) / 2


def contrasts(values_UF: Float64Array, replicate_U: Int64Array, level_U: Int64Array) -> list[Contrast]:
    """Compare each level with the others; of two levels, the second with the first.

    Replicates that have both the level and another are compared with themselves if there are at least MIN_REPLICATES
    of them. Otherwise those that have only the level are compared with those that have only others.

    Args:
        values_UF: float64 [units, features].
        replicate_U: int64 [units].
        level_U: int64 [units].

    Returns:
        Those of levels with enough replicates for a test, or of all levels if none has; empty for one level.
    """
    levels = np.unique(level_U)
    compared = levels[1:] if len(levels) <= 2 else levels  # noqa: PLR2004 - one of two levels mirrors the other
    found = [_contrast(values_UF, replicate_U, level_U == level, int(level)) for level in compared]
    return [contrast for contrast in found if contrast.test is not None] or found


def _contrast(
    values_UF: Float64Array, replicate_U: Int64Array, is_level_U: npt.NDArray[np.bool_], level: int
) -> Contrast:
    own, others = (_by_replicate(values_UF[units], replicate_U[units]) for units in (is_level_U, ~is_level_U))
    both, own_only, others_only = own.keys() & others.keys(), own.keys() - others.keys(), others.keys() - own.keys()
    too_few_apart = min(len(own_only), len(others_only)) < MIN_REPLICATES
    is_paired = len(both) >= MIN_REPLICATES or (bool(both) and too_few_apart)
    own_RF = np.array([own[replicate] for replicate in sorted(both if is_paired else own_only)])
    others_RF = np.array([others[replicate] for replicate in sorted(both if is_paired else others_only)])
    test = None
    if min(len(own_RF), len(others_RF)) >= MIN_REPLICATES:
        with warnings.catch_warnings():  # values that do not vary: p is 0, or not a number if they do not differ
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
            test = (stats.ttest_rel if is_paired else stats.ttest_ind)(own_RF, others_RF)
    estimate_F = own_RF.mean(axis=0) - others_RF.mean(axis=0)
    return Contrast(level, is_paired, len(own_RF), len(others_RF), estimate_F, test)


def _by_replicate(values_UF: Float64Array, replicate_U: Int64Array) -> dict[int, Float64Array]:
    """Replicate -> mean of its units, float64 [features]."""
    return {int(replicate_U[units[0]]): values_UF[units].mean(axis=0) for units in groups_of(replicate_U)}
