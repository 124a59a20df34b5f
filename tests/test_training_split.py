"""The split into training and validation cells."""

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import CONTENT, JOINID
from scgpt_ray.training.split import NEITHER, TRAINING, VALIDATION, Split, choose_groups

N = 2000
DIGESTS = np.random.default_rng(5).integers(0, 2**64, N, np.uint64)
DONORS = ["d1", "d2", None, "unknown", "d3"]
PLAIN = Split(condition=None, column=None, groups=(), share=0.3, seed=0)


def tokens(joinids):
    donors = [DONORS[joinid % 5] for joinid in joinids]
    donor = pa.array(donors, pa.string()).dictionary_encode()
    return pa.table({JOINID: np.asarray(joinids), "donor": donor, CONTENT: DIGESTS[joinids]})


def share(part, rows=slice(None), seed=0):
    split = Split(condition=None, column=None, groups=(), share=part, seed=seed)
    sides = split.sides(tokens(np.arange(N)[rows]), "place")
    assert set(sides.tolist()) <= {TRAINING, VALIDATION}
    return sides == VALIDATION


@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_a_share(part):
    deviation = (part * (1 - part) / N) ** 0.5
    assert abs(share(part).mean() - part) < 4 * deviation


def test_none_and_all():
    assert not share(0.0).any()
    assert share(1.0).all()


def test_it_depends_on_the_content_of_the_cell_alone():
    """Not on the file or atlas it is in, nor on its neighbours."""
    whole = share(0.3)
    order = np.random.default_rng(0).permutation(N)
    assert np.array_equal(share(0.3, order), whole[order])
    assert np.array_equal(share(0.3, slice(700, 900)), whole[700:900])


def test_a_larger_share_has_the_smaller_one_in_it():
    assert (share(0.3) >= share(0.1)).all()


def test_seeds_draw_differently():
    assert not np.array_equal(share(0.3), share(0.3, seed=1))


def test_a_condition():
    split = Split("donor == 'd2'", None, (), 0.5, 0)
    assert split.sides(tokens([0, 1, 2, 3]), "place").tolist() == [0, 1, 0, 0]


def test_a_condition_that_makes_no_sense():
    split = Split("tissue == 'blood'", None, (), 0.5, 0)
    with pytest.raises(AtlasError, match=r"no column tissue; obs has .*; change --validation-filter"):
        split.sides(tokens([0, 1]), "place")


def test_groups_are_never_divided_and_cells_without_one_are_not_used():
    split = Split(None, "donor", ("d1", "d3"), 0.5, 0)
    found = split.sides(tokens(np.arange(10)), "place")
    assert found.tolist() == [VALIDATION, TRAINING, NEITHER, NEITHER, VALIDATION] * 2
    assert found.dtype == np.int8


@pytest.mark.parametrize(
    "split", [PLAIN, Split(None, "donor", ("d1",), 0.5, 0), Split("donor == 'd2'", None, (), 0, 0)]
)
def test_no_cells(split):
    assert split.sides(tokens(np.arange(0)), "place").shape == (0,)


@pytest.mark.parametrize(("n", "part", "n_chosen"), [(2, 0.05, 1), (2, 1.0, 1), (20, 0.1, 2), (7, 0.5, 4), (9, 0.0, 1)])
def test_groups_are_drawn(n, part, n_chosen):
    names = [f"d{number}" for number in range(n)]
    chosen = choose_groups(names, part, 0)
    assert len(set(chosen)) == len(chosen) == n_chosen
    assert set(chosen) < set(names)
    assert choose_groups(names[::-1] * 2, part, 0) == chosen


def test_every_group_is_drawn_as_often():
    drawn = [name for seed in range(400) for name in choose_groups("abcd", 0.25, seed)]
    counts = [drawn.count(name) for name in "abcd"]
    assert sum(counts) == 400
    assert min(counts) > 74  # of 100; three standard deviations are 26
