"""The data of a view of cells, and its colours."""

import sys

import numpy as np
import pytest

from scgpt_ray.errors import ConfigError
from scgpt_ray.evaluation.report.palette import CATEGORICAL, GREY, colours_of
from scgpt_ray.evaluation.report.scatter import MAX_NAMES, NOTHING, Column, Scatter, require_bokeh

bokeh_document = pytest.importorskip("bokeh.document", reason="needs bokeh")


def drawn(columns, n=4, n_front=None, places=None):
    """The columns that Bokeh gets, and the legends."""
    places = np.arange(2.0 * n).reshape(n, 2) if places is None else places
    view = Scatter({"UMAP": places}, columns, [], "caption", n_front).drawn()
    document = bokeh_document.Document.from_json(view["plots"]["doc"])
    return document.get_model_by_name("cells").data, view["legends"]


def test_every_cell_keeps_its_place_and_values():
    rng, n = np.random.default_rng(0), 300
    places = rng.standard_normal((n, 2)).astype(np.float32)
    kinds = rng.choice(["T", "B", "NK"], n, p=[0.6, 0.3, 0.1])
    ages = np.where(np.arange(n) % 7 == 0, np.nan, rng.random(n))
    names = [f"cell {number}" for number in range(n)]
    data, (kind, age, obs_id) = drawn(
        [Column("kind", kinds), Column("age", ages), Column("obs_id", names)], n, places=places
    )
    rows = [int(name.split()[1]) for name in data["c2"]]
    assert sorted(rows) == list(range(n))
    assert rows != sorted(rows), "no label is always on top"
    assert (obs_id.palette, obs_id.labels) == ((), {})
    assert [list(kind.labels)[code] for code in data["c0"]] == kinds[rows].tolist()
    assert list(kind.labels.items()) == [(name, int((kinds == name).sum())) for name in ("T", "B", "NK")]
    np.testing.assert_array_equal(data["c1"], ages[rows].astype(np.float32))
    assert age.n_missing == int(np.isnan(ages).sum())
    assert (age.low, age.high) == pytest.approx(tuple(np.nanquantile(ages, (0.01, 0.99))))
    assert age.ends == (f"≤ {age.low:.4g}", f"≥ {age.high:.4g}")
    np.testing.assert_array_equal(np.stack([data["x0"], data["y0"]], axis=1), places[rows])


def test_cells_behind_are_drawn_first_and_not_counted():
    columns = [Column("kind", ["T", "B", "B", "X", "T", "T"]), Column("of query", [1.5, 2, 3, None, None, None])]
    data, (kind, number) = drawn(columns, 6, 3)
    assert (data["alpha"] < 1).tolist() == [True] * 3 + [False] * 3
    assert sorted(data["x0"][:3]) == [6, 8, 10]
    assert kind.labels == {"B": 2, "T": 1, "X": 0}
    assert np.isnan(data["c1"][:3]).all()
    assert (number.low, number.high, number.ends, number.n_missing) == (1.5, 3.0, ("1.5", "3"), 0)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.25, 0.5, 0.75, 0.5], None),
        ([1, 2, 1, 2], None),
        ([None, 2, None, 3.5], None),
        (np.array([1, None, 3, 4], object), None),
        ([2**24 + 1, 0, 0, 0], None),
        ([True, False, True, None], {"True": 2, "False": 1, NOTHING: 1}),
        ([None] * 4, {NOTHING: 4}),
        ([np.nan] * 4, {NOTHING: 4}),
        (["1", "2", "1", None], {"1": 2, "2": 1, NOTHING: 1}),
    ],
)
def test_numbers_get_a_scale_and_all_else_labels(values, labels):
    data, (legend,) = drawn([Column("x", values)])
    assert legend.labels == labels
    if labels is None:
        assert len(legend.palette) > 20
        expected = [np.nan if value is None else value for value in values]
        np.testing.assert_array_equal(np.sort(data["c0"]), np.sort(np.array(expected, float)))


@pytest.mark.parametrize(("n_names", "is_coloured"), [(MAX_NAMES, True), (MAX_NAMES + 1, False)])
def test_texts_that_name_cells_are_no_colours(n_names, is_coloured):
    n = 3 * n_names
    _, (legend,) = drawn([Column("x", [f"type {number % n_names}" for number in range(n)])], n)
    assert bool(legend.palette) == bool(legend.labels) == is_coloured


def test_a_family_shares_its_colours():
    columns = [
        Column("predicted", ["T", "T", "Unknown", "B"], "kind"),
        Column("true", ["NK", "B", "B", "T"], "kind"),
        Column("donor", ["d1", "d1", "d2", None]),
        Column("outcome", ["right", "wrong", "right", "wrong"], colours={"right": "#000001"}),
    ]
    _, legends = drawn(columns)
    predicted, true, donor, outcome = (dict(zip(legend.labels, legend.palette, strict=True)) for legend in legends)
    first, second, third, *_ = CATEGORICAL
    assert predicted == {"T": first, "B": second, "Unknown": GREY}
    assert true == {"B": second, "NK": third, "T": first}
    assert donor == {"d1": first, "d2": second, NOTHING: GREY}
    assert outcome["right"] == "#000001"


def test_more_labels_than_colours_are_grey():
    names = [f"type {number:02d}" for number in range(len(CATEGORICAL) + 5)]
    assert list(colours_of(names).values()) == [*CATEGORICAL, *[GREY] * 5]
    assert len(set(CATEGORICAL)) == len(CATEGORICAL)


def test_without_bokeh_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(ConfigError, match=r"pip install 'scgpt-ray\[eval\]'"):
        require_bokeh()
