"""The split into training and validation cells."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import BIN, GENE, JOINID
from scgpt_ray.training.split import NEITHER, TRAINING, VALIDATION, Split, choose_groups, content_digests

N = 2000
CONTENT = np.random.default_rng(5).integers(0, 2**64, N, np.uint64)
DONORS = ["d1", "d2", None, "unknown", "d3"]
PLAIN = Split(condition=None, column=None, groups=(), share=0.3, seed=0)


def tokens(joinids):
    donors = [DONORS[joinid % 5] for joinid in joinids]
    return pa.table({JOINID: np.asarray(joinids), "donor": pa.array(donors, pa.string()).dictionary_encode()})


def share(part, rows=slice(None), seed=0):
    split = Split(condition=None, column=None, groups=(), share=part, seed=seed)
    content = CONTENT[rows]
    sides = split.sides(tokens(range(len(content))), content, "place")
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
    assert split.sides(tokens([0, 1, 2, 3]), CONTENT[:4], "place").tolist() == [0, 1, 0, 0]


def test_a_condition_that_makes_no_sense():
    split = Split("tissue == 'blood'", None, (), 0.5, 0)
    with pytest.raises(AtlasError, match=r"no column tissue; obs has .*; change --validation-filter"):
        split.sides(tokens([0, 1]), CONTENT[:2], "place")


def test_groups_are_never_divided_and_cells_without_one_are_not_used():
    split = Split(None, "donor", ("d1", "d3"), 0.5, 0)
    found = split.sides(tokens(range(10)), CONTENT[:10], "place")
    assert found.tolist() == [VALIDATION, TRAINING, NEITHER, NEITHER, VALIDATION] * 2
    assert found.dtype == np.int8


@pytest.mark.parametrize(
    "split", [PLAIN, Split(None, "donor", ("d1",), 0.5, 0), Split("donor == 'd2'", None, (), 0, 0)]
)
def test_no_cells(split):
    assert split.sides(tokens([]), CONTENT[:0], "place").shape == (0,)


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


def table(cells):
    genes, bins = ([[pair[which] for pair in cell] for cell in cells] for which in (0, 1))
    return pa.table({GENE: pa.array(genes, pa.list_(pa.uint16())), BIN: pa.array(bins, pa.list_(pa.uint8()))})


CELLS = {
    "a cell": [(9, 0), (1, 5), (2, 7)],
    "another order of its genes": [(2, 7), (9, 0), (1, 5)],
    "bins swapped": [(9, 0), (1, 7), (2, 5)],
    "another bin": [(9, 0), (1, 5), (2, 8)],
    "another gene": [(9, 0), (1, 5), (3, 7)],
    "a gene less": [(9, 0), (1, 5)],
    "a gene twice": [(9, 0), (1, 5), (1, 5), (2, 7)],
    "nothing": [],
}


def test_digests_are_of_the_set_of_genes_and_bins():
    digests = dict(zip(CELLS, content_digests(table(CELLS.values())).tolist(), strict=True))
    assert digests["a cell"] == digests.pop("another order of its genes")
    assert len(set(digests.values())) == len(digests)


@given(st.lists(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 50)), max_size=5), max_size=6))
def test_digests_do_not_depend_on_the_neighbours(cells):
    found = content_digests(table(cells))
    assert found.dtype == np.uint64
    one_by_one = [int(content_digests(table([cell]))[0]) for cell in cells]
    assert found.tolist() == one_by_one
    for (one, of_one), (other, of_other) in pairwise(zip(cells, one_by_one, strict=True)):
        assert (sorted(one) == sorted(other)) == (of_one == of_other)
