import numpy as np
import pytest

from scgpt_ray.mapping.calibration_sample import Sample
from scgpt_ray.mapping.shift import NEARNESS, PROBABILITY, HeldOutRange, held_out_range
from scgpt_ray.mapping.votes import VoteTally


def tally(top, nearness):
    n = len(top)
    return VoteTally(np.array(top, np.int32), np.ones(n), np.full(n, -1, np.int32), np.zeros(n), np.array(nearness))


def sample(top, nearness, group):
    truth = np.full(len(top), "T", object)
    return Sample(("B", "T"), tally(top, nearness), truth, np.array(group, np.int32), ("x", "y", "z"), (), None)


def test_groups_are_compared_with_the_others_of_their_predicted_label():
    # B cells lie closer than T cells: x has more of them, but is no nearer than the others.
    cells = sample([0, 0, 1, 0, 1, 1, 1, 1, 0], [0.9, 0.9, 0.5, 0.9, 0.5, 0.5, 0.4, 0.4, 0.8], np.repeat([0, 1, 2], 3))
    found = held_out_range(cells, np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.5, 1.0, 0.9]))
    assert found.nearness == {"B": pytest.approx(0.875), "T": pytest.approx(0.46)}
    # x: 0.9 - 0.85 twice, 0.5 - 0.45; y: 0.9 - 2.6 / 3, 0.5 - 1.3 / 3 twice; z: 0.4 - 0.5 twice, 0.8 - 0.9.
    assert found.nearness_range == (pytest.approx(-0.1), pytest.approx(0.5 / 9))
    assert found.probability_range == (pytest.approx(0.6), pytest.approx(0.8))


def test_a_group_of_few_cells_is_no_end_of_the_range():
    group = np.repeat([0, 1, 2], [30, 25, 2])
    nearness = np.choose(group, [0.5, 0.6, 0.1])
    found = held_out_range(sample(np.zeros(57, int), nearness, group), np.choose(group, [0.8, 0.9, 0.1]))
    assert found.probability_range == (pytest.approx(0.8), pytest.approx(0.9))
    assert found.nearness_range[0] > -0.2


def test_a_label_of_one_group_is_compared_with_nothing():
    found = held_out_range(sample([0, 0, 1, 1, 1], [0.9, 0.9, 0.5, 0.5, 0.4], [0, 0, 1, 1, 2]), np.full(5, 0.5))
    assert found.nearness_range == (pytest.approx(0.0), pytest.approx(0.1))
    assert found.nearness == {"B": pytest.approx(0.9), "T": pytest.approx(1.4 / 3)}


@pytest.mark.parametrize(
    ("nearness", "probability", "beyond"),
    [
        ([0.5, 0.9], [0.5, 0.7], (False, False)),
        ([0.4, 0.8], [0.5, 0.7], (False, False)),
        ([0.4, 0.78], [0.5, 0.7], (True, False)),
        ([0.9, 0.9], [0.4, 0.7], (False, True)),
        ([0.9, 0.9], [1.0, 1.0], (False, False)),
    ],
)
def test_a_query_below_the_range_is_beyond_it(nearness, probability, beyond):
    spread = HeldOutRange({"T": 0.5, "B": 0.9}, (-0.105, 0.1), (0.6, 0.8))
    # The last cell has no vote, the one before a label that no held-out cell got.
    votes = tally([1, 0, 2, -1], [*nearness, 0.0, -np.inf])
    found = spread.positions(("B", "T", "C"), votes, np.array([*probability, np.mean(probability), 0.0]))
    assert (found[NEARNESS].beyond, found[PROBABILITY].beyond) == beyond
    assert found[NEARNESS].query == pytest.approx(np.mean(nearness) - 0.7)
    assert found[PROBABILITY].query == pytest.approx(np.mean(probability))
    assert (found[NEARNESS].lowest, found[NEARNESS].highest) == (-0.105, 0.1)
    assert (found[PROBABILITY].lowest, found[PROBABILITY].highest) == (0.6, 0.8)


def test_a_query_without_votes_has_no_position():
    spread = HeldOutRange({"T": 0.5}, (-0.1, 0.1), (0.6, 0.8))
    assert spread.positions(("T",), tally([-1], [-np.inf]), np.zeros(1)) == {}
