"""The error that one more donor or dataset may have, from the errors of some.

Shapes: G groups, T thresholds.
"""

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from scgpt_ray.mapping.votes import Floats

CONFIDENCE = 0.8
"""Confidence that the error of one more group is below its bound.

Measured on mappings between blood datasets and between donors (README of evaluation): at 0.9 a third of the cells that
0.8 accepts become Unknown, and the errors of queries hardly fall.
"""


def error_bound(wrong_GT: npt.NDArray[np.int64], accepted_GT: npt.NDArray[np.int64]) -> Floats:
    """Upper prediction bound of the share of wrong labels among the accepted cells of one more group.

    bound = (W + 1) / (A + 1) + t s sqrt(G + 1), with W wrong of A accepted cells over all groups, s the standard error
    of W / A by the jackknife over groups (Efron 1982, doi:10.1137/1.9781611970319), and t the quantile of Student's
    distribution with G - 1 degrees of freedom. s is the standard deviation of a mean over G groups; the difference
    between one more group and this mean deviates sqrt(G + 1) times as much.

    Args:
        wrong_GT: int64 [G, T], accepted cells with a wrong label, by group and threshold; G at least 2.
        accepted_GT: int64 [G, T], accepted cells.

    Returns:
        float64 [T]; infinity where fewer than two groups have accepted cells.
    """
    n_groups = len(wrong_GT)
    assert n_groups > 1, n_groups
    wrong_T, accepted_T = wrong_GT.sum(axis=0), accepted_GT.sum(axis=0)
    others_GT = accepted_T - accepted_GT
    without_GT = (wrong_T - wrong_GT) / np.maximum(others_GT, 1)
    deviation_T = np.sqrt((n_groups - 1) * without_GT.var(axis=0)) * np.sqrt(n_groups + 1)
    bound_T = (wrong_T + 1) / (accepted_T + 1) + student_t.ppf(CONFIDENCE, n_groups - 1) * deviation_T
    return np.where((others_GT > 0).all(axis=0), bound_T, np.inf)
