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
    assert placement(DISTANCES, 3, {None: (3, 1)}) is None
    assert placement(DISTANCES, 1, {None: (0, 0)}) is None
    found = placement(DISTANCES, 2, {None: (3, 1)})
    assert (found.far, found.limit, found.by_sample) == (pytest.approx(1 / 3), 0.5, {})


@pytest.mark.parametrize(("n_far", "elsewhere"), [(0, False), (10, False), (11, True), (100, True)])
def test_a_query_from_elsewhere(n_far, elsewhere):
    cells = {None: (100, n_far)}
    found = placement(DISTANCES, 1, cells)
    assert found.is_elsewhere == elsewhere == ("the query comes from elsewhere" in found.text())
    assert "from those of another donor" in found.text()
    others = placement(NeighborDistances(RANDOM_FIFTHS, (0.1,), (0.3,)), 1, cells)
    assert "from other cells" in others.text()


def test_one_sample_from_elsewhere_is_named():
    found = placement(DISTANCES, 1, {"here": (300, 0), "there": (20, 20), None: (10, 10)})
    assert (found.by_sample, found.elsewhere) == ({"there": 1.0, "here": 0.0}, ["there"])
    assert found.far < 0.1
    assert found.text().endswith("(there 100%)")
    few = placement(DISTANCES, 1, {"there": (19, 19)})
    assert few.by_sample == {}, "19 cells of a sample show little"
