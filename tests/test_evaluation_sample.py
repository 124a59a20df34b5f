"""Which cells are evaluated."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.sample import numbered, select_cells, strata_of, stratified_sample


@given(
    stock=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(lambda stock: sum(stock) > 0),
    size=st.integers(1, 200),
    seed=st.integers(0, 9),
)
def test_a_sample_is_stratified(stock, size, seed):
    strata = np.unique(
        np.random.default_rng(1).permutation(np.repeat(np.arange(len(stock)), stock)), return_inverse=True
    )[1]
    rows = stratified_sample(strata, size, seed=seed)
    np.testing.assert_array_equal(rows, stratified_sample(strata, size, seed=seed))
    assert len(rows) == min(size, len(strata))
    assert (np.diff(rows) > 0).all(), "ascending, none twice"
    there, taken = np.bincount(strata), np.bincount(strata[rows], minlength=strata.max() + 1)
    assert (taken >= np.minimum(there, min(10, size // len(there)))).all(), "a rare one keeps its cells"
    for small in range(len(there)):
        assert (taken[there >= there[small]] >= taken[small] - 1).all(), "a larger one does not get less"


def test_ten_of_each_and_the_rest_in_proportion():
    strata = np.repeat([0, 1, 2, 3], [8000, 1900, 96, 4])
    taken = np.bincount(strata[stratified_sample(strata, 1000, seed=0)])
    # 34 are set; 966 of the 9,966 left, in proportion to 7,990, 1,890, 86 and 0.
    assert taken.tolist() == [10 + 775, 10 + 183, 10 + 8, 4]


def test_another_seed_draws_others():
    strata = np.zeros(1000, int)
    first, second = (stratified_sample(strata, 100, seed=seed) for seed in (0, 1))
    assert set(first) != set(second)


def test_strata_are_the_combinations():
    strata = strata_of(np.array(["a", "a", "b", "b", "a"]), np.array(["1", "2", "1", "1", "2"]))
    assert strata.tolist() == [0, 1, 2, 2, 1]
    assert strata_of(np.array(["x", "y", "x"])).tolist() == [0, 1, 0]


def columns():
    labels = np.array(["T", "B"] * 20, object)
    labels[[0, 1, 2]] = [None, "unknown", np.nan]
    keys = np.array(["d1", "d1", "d2", "d2"] * 10, object)
    keys[[2, 3]] = None
    present = np.ones(40, bool)
    present[4] = False
    return present, numbered(labels)[0], numbered(keys)[0]


def test_what_is_missing_is_left_out_and_counted():
    selection = select_cells(*columns(), max_cells=100, seed=3)
    assert selection.rows.tolist() == list(range(5, 40))
    assert (selection.n_without_embedding, selection.n_without_label, selection.n_without_batch_key) == (1, 3, 1)
    assert not selection.is_sample
    assert selection.text() == (
        "35 of 40 cells are evaluated; left out: 1 without an embedding, 3 without a label, 1 without a batch key."
    )


def test_a_sample_says_so():
    selection = select_cells(*columns(), max_cells=20, seed=3)
    assert (selection.n_evaluated, selection.n_eligible, selection.is_sample) == (20, 35, True)
    assert (
        "20 of 40 cells are evaluated, a sample of the 35 eligible ones by label and batch key (seed 3);"
        in selection.text()
    )
    told = json.loads(json.dumps(selection.to_dict()))
    assert (told["n_evaluated"], told["is_sample"], told["seed"]) == (20, True, 3)
    _, labels, keys = columns()
    kept = {(labels[row], keys[row]) for row in selection.rows}
    assert kept == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_without_labels_none_is_missing():
    present, _, keys = columns()
    selection = select_cells(present, None, keys, max_cells=100, seed=0)
    assert (selection.n_evaluated, selection.n_without_label) == (37, 0)


def test_too_few_are_refused():
    present, _, keys = columns()
    with pytest.raises(
        InputError, match="0 of 40 cells have an embedding, a label and a batch key; expected at least 16"
    ):
        select_cells(present, numbered(["unknown"] * 40)[0], keys, max_cells=100, seed=0)
