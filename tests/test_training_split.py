"""The split into training and validation cells."""

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import JOINID
from scgpt_ray.training.split import validation_mask

N = 2000


def tokens(joinids):
    donors = [["d1", "d2", None][joinid % 3] for joinid in joinids]
    return pa.table({JOINID: np.asarray(joinids), "donor": pa.array(donors, pa.string())})


def share(part, joinids=range(N), seed=0, atlas="atlas-0", where="place"):
    return validation_mask(tokens(list(joinids)), None, part, seed, atlas=atlas, where=where)


@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_a_share(part):
    deviation = (part * (1 - part) / N) ** 0.5
    assert abs(share(part).mean() - part) < 4 * deviation


def test_none_and_all():
    assert not share(0.0).any()
    assert share(1.0).all()


def test_it_depends_on_the_cell_alone():
    """Not on the file it is in, nor on its neighbours."""
    whole = share(0.3)
    order = np.random.default_rng(0).permutation(N)
    assert np.array_equal(share(0.3, order), whole[order])
    assert np.array_equal(share(0.3, range(700, 900)), whole[700:900])


def test_a_larger_share_has_the_smaller_one_in_it():
    assert (share(0.3) >= share(0.1)).all()


def test_seeds_and_atlases_draw_differently():
    assert not np.array_equal(share(0.3), share(0.3, seed=1))
    assert not np.array_equal(share(0.3), share(0.3, atlas="atlas-1"))


def test_the_place_of_an_atlas_makes_no_difference():
    assert np.array_equal(share(0.3), share(0.3, where="another"))


def test_a_condition():
    found = validation_mask(tokens([0, 1, 2, 3]), "donor == 'd2'", 0.5, 0, atlas="atlas-0", where="place")
    assert found.tolist() == [False, True, False, False]


def test_a_condition_that_makes_no_sense():
    with pytest.raises(AtlasError, match=r"no column tissue; obs has .*; change --validation-filter"):
        validation_mask(tokens([0, 1]), "tissue == 'blood'", 0.5, 0, atlas="atlas-0", where="place")


def test_no_cells():
    assert validation_mask(tokens([]), None, 0.5, 0, atlas="atlas-0", where="place").shape == (0,)
