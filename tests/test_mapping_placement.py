"""Query cells among the distances of a reference."""

import numpy as np
import pytest

from scgpt_ray.mapping.placement import is_far, placement
from scgpt_ray.records import RANDOM_FIFTHS, NeighborDistances

DISTANCES = NeighborDistances("donor", (0.1, 0.2), (0.3, 0.5))


def test_each_cell_is_compared_at_its_number_of_neighbours():
    distance = np.array([0.2, 0.4, 0.6, np.nan])
    assert is_far(DISTANCES, 1, distance).tolist() == [False, True, True, False]
    assert is_far(DISTANCES, 2, distance).tolist() == [False, False, True, False]
    assert is_far(DISTANCES, 3, distance) is None, "the reference's distances go to two neighbours"
    assert placement(DISTANCES, 3, distance, None) is None
    assert placement(DISTANCES, 1, np.array([np.nan]), None) is None
    found = placement(DISTANCES, 2, distance, None)
    assert (found.far, found.limit, found.by_sample) == (pytest.approx(1 / 3), 0.5, {})


@pytest.mark.parametrize(("n_far", "elsewhere"), [(0, False), (10, False), (11, True), (100, True)])
def test_a_query_from_elsewhere(n_far, elsewhere):
    distance = np.repeat([0.9, 0.1], [n_far, 100 - n_far])
    found = placement(DISTANCES, 1, distance, None)
    assert found.is_elsewhere == elsewhere == ("the query comes from elsewhere" in found.text())
    assert "from those of another donor" in found.text()
    others = placement(NeighborDistances(RANDOM_FIFTHS, (0.1,), (0.3,)), 1, distance, None)
    assert "from other cells" in others.text()


def test_one_sample_from_elsewhere_is_named():
    distance = np.concatenate([np.full(300, 0.1), np.full(20, 0.9), np.full(10, 0.9)])
    sample = np.repeat(np.array(["here", "there", None], object), [300, 20, 10])
    found = placement(DISTANCES, 1, distance, sample)
    assert (found.by_sample, found.elsewhere) == ({"there": 1.0, "here": 0.0}, ["there"])
    assert found.far < 0.1
    assert found.text().endswith("(there 100%)")
    few = placement(DISTANCES, 1, distance[301:320], sample[301:320])
    assert few.by_sample == {}, "19 cells of a sample show little"
