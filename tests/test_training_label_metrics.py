"""Label metrics against a slow twin and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.training.label_metrics import K, label_metrics


def unit(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def by_hand(vectors, codes):
    """Cell after cell, with all distances."""
    right, widths = [], []
    for cell, (vector, code) in enumerate(zip(vectors.astype(float), codes, strict=True)):
        distances = np.linalg.norm(vectors.astype(float) - vector, axis=1)
        others = sorted((n for n in range(len(codes)) if n != cell), key=lambda n: distances[n])[:K]
        votes = [codes[n] for n in others]
        right.append(max(set(votes), key=votes.count) == code)
        means = {}
        for label in set(codes):
            members = [n for n in range(len(codes)) if codes[n] == label and n != cell]
            means[label] = distances[members].mean() if members else None
        if means[code] is None:
            widths.append(0.0)  # alone with its label
            continue
        other = min(mean for label, mean in means.items() if label != code)
        widths.append((other - means[code]) / max(other, means[code]))
    return np.mean(right), (np.mean(widths) + 1) / 2


def test_groups_that_lie_apart():
    angles = np.concatenate([np.linspace(0, 0.1, 20), np.linspace(2, 2.1, 20)])
    found = label_metrics(unit(angles), np.repeat([4, 7], 20))
    assert found["label_accuracy"] == 1
    assert found["label_asw"] > 0.95


def test_a_cell_does_not_vote_on_itself():
    """Among ten neighbours of another label, each cell of the smaller group is outvoted."""
    angles = np.concatenate([np.zeros(4) + np.arange(4) * 1e-3, np.linspace(0.01, 0.02, 20)])
    found = label_metrics(unit(angles), np.repeat([0, 1], [4, 20]))
    assert found["label_accuracy"] == pytest.approx(20 / 24)


@given(st.integers(0, 2**32 - 1), st.integers(13, 40))
def test_they_are_the_definition(seed, n):
    random = np.random.default_rng(seed)
    vectors, codes = unit(random.uniform(0, 6, n)), random.integers(0, 2, n)
    codes[:2] = [0, 1]
    accuracy, width = by_hand(vectors, codes)
    found = label_metrics(vectors, codes)
    assert found["label_asw"] == pytest.approx(width, abs=1e-5)
    # Five to five among ten neighbours is a tie, which the twin does not resolve.
    assert abs(found["label_accuracy"] - accuracy) <= tied_cells(vectors, codes) / n + 1e-9


def tied_cells(vectors, codes):
    order = np.argsort(np.linalg.norm(vectors[:, None] - vectors[None], axis=2), axis=1, kind="stable")
    near = [[n for n in row if n != cell][:K] for cell, row in enumerate(order)]
    return sum(2 * codes[row].sum() == K for row in near)


@pytest.mark.parametrize(
    "codes", [[3, 3, 3, 3], [0, 1, 2, 3], [], [2]], ids=["one label", "each its own", "none", "one"]
)
def test_where_they_are_not_defined(codes):
    assert label_metrics(unit(np.arange(len(codes))), np.array(codes, np.int64)) == {}


def test_few_cells_have_few_neighbours():
    found = label_metrics(unit(np.array([0, 0.1, 2])), np.array([0, 0, 1]))
    assert found["label_accuracy"] == pytest.approx(2 / 3)
