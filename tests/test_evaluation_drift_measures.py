"""Figures of drift: what they are of known differences, and that composition and sampling are none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.evaluation.drift.measures import (
    Cells,
    _purity,
    genes_change,
    mean_shift,
    purity_fall,
    share_rise,
)

KINDS = {"B": 0, "T": 1, "NK": 2}


def cells(counts, *, seed, dataset="one", move=0.0, genes=1.0, first=0, spread=0.3):
    """Cells around one direction per label, `move` spreads away from it; label -> number of cells."""
    random = np.random.default_rng(seed)
    label = np.array([name for name, n in counts.items() for _ in range(n)], object)
    centre = np.eye(16)[[KINDS[name] for name in label]]
    moved = centre + move * spread * np.eye(16)[8] + random.normal(0, spread / 4, (len(label), 16))
    return Cells(
        first + np.arange(len(label)),
        moved.astype(np.float32),
        np.round(genes * random.normal(500, 50, len(label))).astype(np.int64),
        label,
        np.array([dataset] * len(label), object),
    )


@pytest.mark.parametrize(
    ("new", "earlier", "value", "margin"),
    [
        ((10, 100), (0, 100), 0.1, (0.05, 0.07)),
        ((0, 100), (0, 10000), 0.0, (0.01, 0.02)),
        ((5, 10), (50, 100), 0.0, (0.2, 0.4)),
    ],
)
def test_shares(new, earlier, value, margin):
    found = share_rise(new, earlier)
    assert found.value == pytest.approx(value)
    assert margin[0] < found.margin < margin[1]
    assert (found.n_new, found.n_earlier) == (new[1], earlier[1])


def test_a_moved_mean_is_measured_in_units_of_the_spread():
    """The deviation is a quarter of the unit in each of 16 directions, so that the spread is the unit."""
    earlier = cells({"B": 400, "T": 400}, seed=1)
    for move in (0.5, 1.0, 3.0):
        found = mean_shift(cells({"B": 300, "T": 300}, seed=2, move=move), earlier, 20)
        assert found.value == pytest.approx(move, abs=0.1)
        assert found.margin < 0.1
        assert (found.n_new, found.n_earlier) == (600, 800)


@pytest.mark.parametrize("n", [20, 40, 300])
def test_cells_of_the_same_kind_have_not_moved(n):
    """Also few: the distance that sampling makes, 1 / sqrt(n) spreads, is subtracted."""
    shifts = [
        mean_shift(cells({"B": n}, seed=seed), cells({"B": 2 * n}, seed=seed + 100), 20).value for seed in range(10)
    ]
    assert np.mean(np.square(shifts)) < 0.3 / n


def test_another_composition_is_no_drift():
    earlier, new = cells({"B": 300, "T": 30, "NK": 30}, seed=1), cells({"B": 30, "T": 300, "NK": 3}, seed=2, first=900)
    assert mean_shift(new, earlier, 20).value < 0.1
    assert abs(genes_change(new, earlier, 20).value) < 0.05
    assert abs(purity_fall(new, earlier, earlier, 20).value) < 0.05
    assert mean_shift(new, earlier, 20).n_new == 330, "three NK cells are too few"


def test_half_the_genes():
    earlier, new = cells({"B": 100, "T": 50}, seed=1), cells({"B": 50, "T": 70}, seed=2, genes=0.5)
    assert genes_change(new, earlier, 20).value == pytest.approx(-1, abs=0.05)
    assert genes_change(earlier, new, 20).value == pytest.approx(1, abs=0.05)


def test_exchanged_labels_lower_the_purity():
    earlier = cells({"B": 100, "T": 100}, seed=1)
    new = cells({"B": 60, "T": 60}, seed=2, first=900)
    exchanged = Cells(new.cell_N, new.vectors_ND, new.genes_N, new.label_N[::-1].copy(), new.dataset_N)
    assert purity_fall(exchanged, earlier, earlier, 20).value == pytest.approx(1)


def test_without_enough_cells_of_a_label_there_is_no_figure():
    earlier, new = cells({"B": 100, "T": 100}, seed=1), cells({"B": 19, "NK": 50}, seed=2, first=900)
    assert (
        mean_shift(new, earlier, 20) is genes_change(new, earlier, 20) is purity_fall(new, earlier, earlier, 20) is None
    )
    assert purity_fall(cells({"NK": 50}, seed=3), earlier, earlier, 20) is None


@given(st.integers(2, 30), st.integers(0, 100), st.booleans())
def test_purity_is_that_of_a_loop(n, seed, apart):
    random = np.random.default_rng(seed)
    some = cells({"B": n, "T": n}, seed=seed, spread=4.0)
    among = Cells(
        some.cell_N, some.vectors_ND, some.genes_N, random.permutation(some.label_N),
        random.choice(["one", "two"], 2 * n).astype(object),
    )  # fmt: skip
    found = _purity(among, among, apart=apart)
    for i in range(2 * n):
        others = [j for j in range(2 * n) if (among.dataset_N[j] != among.dataset_N[i] if apart else j != i)]
        others.sort(key=lambda j: -float(among.vectors_ND[i] @ among.vectors_ND[j]))
        nearest = others[:10]
        expected = sum(among.label_N[j] == among.label_N[i] for j in nearest) / max(len(nearest), 1)
        assert found[i] == pytest.approx(expected)
