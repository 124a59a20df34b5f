"""The data of a view of cells, and its colours."""

import base64
import json
import re
from importlib.resources import files

import numpy as np
import pytest

from scgpt_ray.evaluation.report.palette import GREY, MAX_COLOURS, STRONG, categorical, colours_of, oklab, sequential
from scgpt_ray.evaluation.report.scatter import NOTHING, Column, Scatter, cells_section


@pytest.fixture
def random():
    """The same numbers in every test, whichever ran before it."""
    return np.random.default_rng(0)


def packed(columns, n=4, n_front=None, places=None):
    places = np.arange(2.0 * n).reshape(n, 2) if places is None else places
    html = Scatter({"UMAP": places}, columns, [], "caption", n_front).html()
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])


def numbers(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def labels_of(column):
    return [column["names"][code] for code in numbers(column["codes"], "<u2")]


def test_every_cell_keeps_its_place_and_values(random):
    n = 300
    places = random.standard_normal((n, 2)) * [3, 1]
    kinds = random.choice(["T", "B", "NK"], n, p=[0.6, 0.3, 0.1])
    ages = np.where(np.arange(n) % 7 == 0, np.nan, random.random(n))
    names = [f"cell {number}" for number in range(n)]
    data = packed([Column("kind", kinds), Column("age", ages), Column("obs_id", names)], n, places=places)
    kind, age, obs_id = data["columns"]
    rows = [int(name.split()[1]) for name in obs_id["texts"]]
    assert sorted(rows) == list(range(n))
    assert rows != sorted(rows), "no label is always on top"
    assert labels_of(kind) == kinds[rows].tolist()
    assert kind["names"] == ["T", "B", "NK"], "the most frequent first"
    assert kind["counts"] == [int((kinds == name).sum()) for name in kind["names"]]
    np.testing.assert_array_equal(numbers(age["values"], "<f4"), ages[rows].astype(np.float32))
    assert age["missing"] == int(np.isnan(ages).sum())
    assert (age["below"], age["above"]) == (True, True)
    assert age["low"] == pytest.approx(np.nanquantile(ages, 0.01))
    panel = data["panels"][0]
    drawn = numbers(panel["places"], "<u2").reshape(n, 2).astype(float)
    unit = np.ptp(places[:, 0]) / 65535
    np.testing.assert_allclose(drawn[:, 0] * unit, places[rows, 0] - places[:, 0].min(), atol=unit)
    np.testing.assert_allclose(drawn[:, 1] * unit, places[:, 1].max() - places[rows, 1], atol=unit)
    assert panel["extent"] == drawn.max(axis=0).tolist()


def test_cells_behind_come_last_and_are_not_counted():
    columns = [Column("kind", ["T", "B", "B", "X", "T", "T"]), Column("of query", [1.5, 2, 3, None, None, None])]
    data = packed(columns, 6, 3)
    assert (data["n"], data["n_front"]) == (6, 3)
    kind, of_query = data["columns"]
    assert (kind["names"], kind["counts"]) == (["B", "T", "X"], [2, 1, 0])
    assert sorted(labels_of(kind)[:3]) == ["B", "B", "T"]
    assert of_query["kind"] == "labels", "few values are labels"
    assert of_query["names"][-1] == NOTHING


def test_kinds_of_columns():
    n = 1200
    columns = [
        Column("many", [f"type {number % 600}" for number in range(n)]),
        Column("flag", [number % 2 == 0 for number in range(n)]),
        Column("few", [number % 4 for number in range(n)]),
        Column("counts", np.arange(n)),
        Column("none", [None] * n),
    ]
    found = packed(columns, n)["columns"]
    assert [column["kind"] for column in found] == ["texts", "labels", "labels", "numbers", "labels"]
    assert found[1]["names"] == ["False", "True"]
    assert found[4]["names"] == [NOTHING]
    assert found[4]["colours"] == [None]


def test_a_family_shares_its_colours():
    columns = [
        Column("predicted", ["T", "T", "Unknown", "B"], "kind"),
        Column("true", ["NK", "B", "B", "T"], "kind"),
        Column("donor", ["d1", "d1", "d2", None]),
        Column("outcome", ["right", "wrong", "right", "wrong"], colours={"right": "#000001"}),
    ]
    colours = [dict(zip(column["names"], column["colours"], strict=True)) for column in packed(columns)["columns"]]
    predicted, true, donor, outcome = colours
    assert predicted == {"T": STRONG[0], "B": STRONG[1], "Unknown": None}
    assert true == {"B": STRONG[1], "NK": STRONG[2], "T": STRONG[0]}
    assert donor == {"d1": STRONG[0], "d2": STRONG[1], NOTHING: None}
    assert outcome["right"] == "#000001"


def test_more_labels_than_colours_are_grey():
    n = 3 * (MAX_COLOURS + 5)
    column = packed([Column("kind", [f"type {number % (MAX_COLOURS + 5):02d}" for number in range(n)])], n)["columns"][
        0
    ]
    assert len(column["names"]) == MAX_COLOURS + 5
    assert column["colours"][MAX_COLOURS:] == [None] * 5
    assert len(set(column["colours"][:MAX_COLOURS])) == MAX_COLOURS
    assert list(colours_of(column["names"]).values())[MAX_COLOURS:] == [GREY] * 5


def test_a_name_cannot_end_the_script():
    html = Scatter({"UMAP": np.zeros((1, 2))}, [Column("x", ["</script><b>"])], [], "</figure>").html()
    assert html.count("</script>") == 2
    assert html.count("</figure>") == 1
    assert cells_section("Too <few>.") == "<h2>Cells</h2>\n<p>Too &lt;few&gt;.</p>"


def test_colours_can_be_told_apart():
    lab = oklab([*categorical(), GREY, "#ffffff", "#1c2027"])
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert distance[:20, :20].min() > 0.1
    assert distance[:40, :40].min() > 0.075
    assert distance.min() > 0.07
    assert np.allclose(oklab(["#ffffff", "#000000"]), [[1, 0, 0], [0, 0, 0]], atol=1e-3)
    np.testing.assert_allclose(oklab(["#ff0000"])[0], [0.62796, 0.22486, 0.12585], atol=1e-4)
    assert (np.diff(oklab(list(sequential()))[:, 0]) > 0.01).all(), "ever lighter"


def test_scripts_and_styles_are_in_the_package():
    names = {place.name for place in files("scgpt_ray.evaluation.report").joinpath("web").iterdir()}
    assert {"columns.js", "panel.js", "view.js", "report.css", "scatter.css"} <= names
