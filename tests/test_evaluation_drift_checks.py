"""Checks of a data set: a known one against itself, a new one against how data sets differ."""

import numpy as np
import pytest

from scgpt_ray.evaluation.drift.checks import Drift, Tally
from scgpt_ray.evaluation.drift.measures import Cells
from scgpt_ray.evaluation.drift.thresholds import Thresholds

LIMITS = Thresholds.load(None)
PLAIN = Tally(400, 0, 0)


def cells(*pieces):
    """Cells of pieces (data set, label, direction of label, direction of data set, number); direction None: any."""
    random, tables = np.random.default_rng(0), []
    for dataset, label, kind, where, n in pieces:
        vectors = random.normal(0, 0.05, (n, 16)) + 0.2 * np.eye(16)[where]
        vectors += np.eye(16)[kind] if kind is not None else np.eye(16)[random.integers(0, 3, n)]
        tables.append((vectors, [label] * n, [dataset] * n))
    vectors, labels, datasets = (np.concatenate([table[place] for table in tables]) for place in range(3))
    n = len(labels)
    genes = random.integers(400, 600, n)
    return Cells(
        np.arange(n), np.array(vectors, np.float32), genes, np.array(labels, object), np.array(datasets, object)
    )


def drift(new, earlier, tally=PLAIN, tally_earlier=PLAIN):
    name = str(new.dataset_N[0])
    numbered = Cells(10**6 + new.cell_N, new.vectors_ND, new.genes_N, new.label_N, new.dataset_N)
    is_known = bool((earlier.dataset_N == name).any())
    found = Drift(name, numbered, earlier, tally, tally_earlier, is_known, LIMITS).checks()
    return {check.name: check for check in found}


def statuses(checks):
    return {name: check.status for name, check in checks.items()}


EARLIER = [("one", "B", 0, 4, 60), ("one", "T", 1, 4, 60), ("two", "B", 0, 5, 60), ("two", "T", 1, 5, 60)]


def test_a_known_data_set():
    earlier = cells(*EARLIER)
    names = ["empty_rise", "cut_change", "genes_change", "mean_shift", "purity_fall"]
    plain = drift(cells(("one", "B", 0, 4, 30), ("one", "T", 1, 4, 30)), earlier)
    assert statuses(plain) == dict.fromkeys(names, "passed")
    # As the other data set is.
    moved = drift(cells(("one", "B", 0, 5, 30), ("one", "T", 1, 5, 30)), earlier)
    assert statuses(moved) == dict.fromkeys(names, "passed") | {"mean_shift": "failed"}
    exchanged = drift(cells(("one", "T", 0, 4, 30), ("one", "B", 1, 4, 30)), earlier)
    assert statuses(exchanged)["purity_fall"] == "failed"


def test_a_new_data_set_may_differ_as_data_sets_do():
    earlier = cells(*EARLIER)
    names = ["empty_rise", "dataset_shift", "dataset_purity_fall"]
    plain = drift(cells(("three", "B", 0, 6, 30), ("three", "T", 1, 6, 30)), earlier)
    assert statuses(plain) == dict.fromkeys(names, "passed")
    assert 0.6 < plain["dataset_shift"].value < 0.85, "in units of the 1.4 spreads between the data sets"
    broken = drift(cells(("three", "B", None, 6, 30), ("three", "T", None, 6, 30)), earlier)
    assert statuses(broken) == {"empty_rise": "passed", "dataset_shift": "failed", "dataset_purity_fall": "failed"}


def test_a_new_data_set_next_to_a_single_one():
    """How data sets differ is not known then, but neighbours are."""
    earlier = cells(*EARLIER[:2])
    plain = drift(cells(("three", "B", 0, 6, 30), ("three", "T", 1, 6, 30)), earlier)
    assert statuses(plain)["dataset_shift"] == "not checked"
    assert plain["dataset_shift"].note.startswith("fewer than two earlier data sets")
    assert statuses(plain)["dataset_purity_fall"] == "passed"
    broken = drift(cells(("three", "B", None, 6, 30), ("three", "T", None, 6, 30)), earlier)
    assert statuses(broken)["dataset_purity_fall"] == "failed"


@pytest.mark.parametrize(
    ("new", "earlier", "failed"),
    [
        (Tally(100, 1, 0), Tally(400, 0, 0), set()),
        (Tally(100, 20, 0), Tally(400, 0, 0), {"empty_rise"}),
        (Tally(100, 0, 60), Tally(400, 0, 0), {"cut_change"}),
        (Tally(100, 0, 0), Tally(400, 0, 300), {"cut_change"}),
        (Tally(20, 1, 0), Tally(400, 0, 0), set()),
    ],
)
def test_shares(new, earlier, failed):
    found = drift(cells(("one", "B", 0, 4, 30)), cells(*EARLIER), new, earlier)
    assert {name for name, check in found.items() if check.status == "failed"} == failed


def test_few_new_cells_are_not_checked():
    found = drift(cells(("one", "B", 1, 4, 19)), cells(*EARLIER), Tally(19, 9, 0))
    assert [*found] == ["empty_rise"]
    assert (found["empty_rise"].status, found["empty_rise"].note) == ("not checked", "fewer than 20 new cells")
