"""Masks of the cells that queries may find."""

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.index.neighbor_filter import NeighborFilter

LABELS = pa.table({"donor": ["a", "b", None, "a", "c"], "age": [1, 2, 2, None, 1]})


def masks(allowed, labels=LABELS):
    return {tuple(rows.tolist()): mask.astype(int).tolist() for rows, mask in allowed.masks(labels)}


def test_queries_that_share_their_values_share_a_mask():
    own = pa.table({"donor": ["b", "a", None, "b", "absent"]})
    everything = [1] * 5
    assert masks(NeighborFilter.among(None, own, 5)) == {
        (0, 3): [1, 0, 1, 1, 1],
        (1,): [0, 1, 1, 0, 1],
        (2,): everything,  # no value equals none
        (4,): everything,
    }


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_cell_that_shares_any_of_several_values_is_not_found(dictionary):
    own = pa.table({"donor": ["a"], "age": ["2"]})  # values are compared as text
    labels = LABELS.set_column(0, "donor", LABELS["donor"].dictionary_encode()) if dictionary else LABELS
    assert masks(NeighborFilter.among(None, own, 1), labels) == {(0,): [0, 0, 0, 0, 1]}
    assert masks(NeighborFilter.among("age == 1", own, 1), labels) == {(0,): [0, 0, 0, 0, 1]}
    assert masks(NeighborFilter.among("age == 1", pa.table({}), 2), labels) == {(0, 1): [1, 0, 0, 0, 1]}


def test_a_shard_without_cells_or_values():
    own = pa.table({"donor": ["a"]})
    assert masks(NeighborFilter.among(None, own, 1), LABELS.slice(0, 0)) == {(0,): []}
    assert masks(NeighborFilter.among(None, own, 1), pa.table({"donor": pa.nulls(2)})) == {(0,): [1, 1]}


def test_some_of_the_queries_keep_their_groups():
    allowed = NeighborFilter.among(None, pa.table({"donor": ["b", "a", "b"]}), 3).of(np.array([2, 1]))
    assert masks(allowed) == {(0,): [1, 0, 1, 1, 1], (1,): [0, 1, 1, 0, 1]}
    assert NeighborFilter.among(None, pa.table({}), 3) is None
