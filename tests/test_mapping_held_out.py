import numpy as np
import pytest
from scipy.stats import binomtest

from scgpt_ray.mapping.calibration_sample import Sample
from scgpt_ray.mapping.held_out import HeldOut, Outcome
from scgpt_ray.mapping.rejection import TOO_FAR, TOO_UNSURE
from scgpt_ray.mapping.votes import VoteTally


@pytest.mark.parametrize(("wrong", "accepted"), [(0, 20), (3, 20), (20, 20), (1, 1)])
def test_the_limit_is_that_of_the_exact_binomial_test(wrong, accepted):
    outcome = Outcome(30, 10, accepted, wrong)
    assert outcome.error == wrong / accepted
    # The upper end of the two-sided 90 % interval is the one-sided 95 % limit.
    exact = binomtest(wrong, accepted).proportion_ci(0.9, "exact").high
    assert outcome.error_limit == pytest.approx(exact)


def test_without_accepted_cells_there_is_no_error():
    outcome = Outcome.of(np.array([True, False]), np.array([False, False]))
    assert outcome == Outcome(2, 1, 0, 0)
    assert (outcome.error, outcome.error_limit) == (None, 1.0)


def test_counts_by_predicted_label_and_group():
    #        right  right  wrong        right       wrong  wrong
    truth = ["T",   "T",   "B",         "B",        "T",   "NK"]  # fmt: skip
    top = np.array([1, 1, 1, 0, 0, 0], np.int32)
    group = np.array([0, 0, 0, 2, 2, 2], np.int32)
    reason = np.array(["", TOO_UNSURE, "", "", "", TOO_FAR], object)
    tally = VoteTally(top, np.full(6, 0.5), np.full(6, -1, np.int32), np.zeros(6), np.zeros(6))
    sample = Sample(("B", "T"), tally, np.array(truth, object), group, ("d1", "d2", "d3"), ("B", "T"), tally)
    withheld = np.array([TOO_FAR, "", TOO_UNSURE, "", TOO_FAR, ""], object)
    found = HeldOut.of(sample, np.full(6, 0.25), reason, withheld)
    assert (found.cells, found.groups, found.accuracy) == (6, 2, 0.5)
    assert (found.accepted, found.error_accepted, found.false_rejection) == (4 / 6, 0.5, 1 / 6)
    assert (found.before.ece, found.after.ece) == (0.0, 0.25)
    assert found.by_label == {"B": Outcome(3, 1, 2, 1), "T": Outcome(3, 2, 2, 1)}
    assert found.by_group == {"d1": Outcome(3, 2, 2, 1), "d3": Outcome(3, 1, 2, 1)}
    shares = {label: (cells.cells, cells.too_far, cells.rejected) for label, cells in found.withheld.items()}
    assert shares == {"B": (2, 0, 0.5), "NK": (1, 0, 0), "T": (3, 2 / 3, 2 / 3)}
