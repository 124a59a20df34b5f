"""The reports in a real browser, used as a person would: nothing fails, is unreadable or comes from outside."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from scgpt_ray.evaluation.factors.effects import FactorEffect, FactorInEmbedding
from scgpt_ray.evaluation.factors.expression import DepthChange, ExpressionShift, GeneChange, GeneChanges
from scgpt_ray.evaluation.factors.probe import Probe, Purity
from scgpt_ray.evaluation.factors.variance import VarianceShares
from scgpt_ray.evaluation.integration.metrics import AVERAGES, METRICS, Integration, IntegrationScores
from scgpt_ray.evaluation.labels.label_evaluation import evaluate
from scgpt_ray.evaluation.labels.metrics import outcomes
from scgpt_ray.evaluation.markers import MarkedLabel, MarkerGene
from scgpt_ray.evaluation.report.findings import ColumnFindings, Findings, LabelShare
from scgpt_ray.evaluation.report.marker_plot import marker_dots
from scgpt_ray.evaluation.report.palette import OUTCOMES
from scgpt_ray.evaluation.report.picture import Picture
from scgpt_ray.evaluation.report.plots import (
    confusion_heatmap,
    coverage_accuracy,
    histogram,
    reliability_diagram,
    umap_scatter,
)
from scgpt_ray.evaluation.report.reports import integration_report, map_report
from scgpt_ray.evaluation.report.scatter import Column, Scatter

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome"),
]

LABELS = [
    "</script><script>alert(1)</script>", "<b onclick='alert(2)'>\"quoted\" & {{ bold }}</b>", "natural killer cell",
    "CD14-positive, CD16-negative classical monocyte", "effector memory CD8-positive, alpha-beta T cell, old",
    *(f"type {number} of the lamina propria, with a long name" for number in range(35)),
]  # fmt: skip
HOSTILE = "<i>@c0 {{ share }}</i> $index </script>"
N = 1500


def blobs(seed):
    """Labels, the first the most frequent, and places in blobs on a grid."""
    rng = np.random.default_rng(seed)
    label = np.minimum(rng.geometric(0.06, N) - 1, len(LABELS) - 1)
    places = np.stack([label % 7, label // 7], axis=1) * 4 + 0.6 * rng.standard_normal((N, 2))
    return np.array(LABELS, object)[label], places.astype(np.float32), rng


def findings():
    """Half of the labels are absent; long names."""

    def marked(label, seen):
        genes = tuple(MarkerGene(f"{label[:3]}{n}", (0.8, 3.0), (seen, seen * 3), seen) for n in range(3))
        return MarkedLabel(label, 30, genes, {})

    labels = [marked(label, place % 2 * 0.9) for place, label in enumerate(LABELS)]
    profile = {gene.gene: (0.4, 1.0) for label in labels for gene in label.genes}
    labels = [replace(label, profile=profile) for label in labels]
    composition = [LabelShare(name, 30, 0.02, 0.5, 0.1, "absent", (0.1, 0.2)) for name in LABELS]
    picture = Picture(marker_dots(labels, "cell_type"), "Markers of the predicted labels.")
    return Findings(
        "1,500 cells, 40 labels", [HOSTILE], {"cell_type": HOSTILE}, ["s1", "s2"],
        [ColumnFindings("cell_type", "share of the votes", composition, picture)], "",
    )  # fmt: skip


def mapping_page():
    truth, places, rng = blobs(0)
    said = np.where(rng.random(N) < 0.85, truth, rng.permutation(truth))
    sure = np.round(rng.beta(5, 2, N), 1)
    shown = np.where(sure < 0.4, "Unknown", said)
    meanings = {"share of the votes": sure, "probability of being right": sure**1.2}
    evaluation = evaluate(truth, said, meanings, sure < 0.4, dict.fromkeys(LABELS, 50))
    outcome = outcomes(truth, said)
    behind, nothing = places[:400] + rng.standard_normal((400, 2)).astype(np.float32), [None] * 400
    genes, caption = rng.poisson(1800, N), "UMAP of 1,500 of 1,503 query cells, which the legend counts."
    view = Scatter(
        panels={"UMAP": np.concatenate([places, behind])},
        columns=[
            Column("predicted cell_type", [*shown, *truth[:400]], "cell_type"),
            Column("true cell_type", [*truth, *nothing], "cell_type"),
            Column("right or wrong", [*outcome, *nothing], colours=OUTCOMES),
            Column(HOSTILE, [*sure, *nothing]),
            Column("obs_id", [f"AAACCTGAGAAACCAT-{number}" for number in range(N + 400)]),
            Column("n_genes", [*genes, *nothing]),
        ],
        pictures=[Picture(umap_scatter(places, shown.tolist(), "Predicted cell_type", behind), caption)],
        caption=caption,
        n_front=N,
    )
    groups = {name: sure[outcome == name] for name in ("right", "wrong")}
    pictures = [
        Picture(confusion_heatmap(evaluation.scores), "Where the vote put the cells of each true label."),
        Picture(histogram(groups, "Confidence", "share", bins=20, range=(0, 1)), "Confidence of what was voted."),
        Picture(
            coverage_accuracy({"share of the votes": evaluation.selective_accuracy}, (0.8, 0.9)),
            "Accuracy by coverage.",
        ),
        Picture(reliability_diagram(evaluation.reliability), "How often query cells are right, by their confidence."),
    ]
    facts = {"query": "/data/" + "a-long-folder-name/" * 6 + "query.h5ad", "query cells": 1503, "votes": "balanced"}
    covered = {"fraction": 0.934, "genes_matched": 18123, "genes_total": 32738, "missing": [["MALAT1", 0.021]],
               "n_cells": 1503, "n_empty": 3}  # fmt: skip
    return map_report("pbmc3k mapped onto pbmc_facs", findings(), facts, view, covered, pictures, evaluation)


def effect(name, embeddings, rng):
    genes = tuple(GeneChange(f"ISG{number}", "T", "stimulated", 2.0, 1.5, 2.5, 1e-9, 1e-7) for number in range(4))
    depth = DepthChange("stimulated", 1.1, 0.95, 1.27, 0.4, 1.16)
    shift = ExpressionShift(True, 4, 4, 4, depth, GeneChanges(1200, 4, 12, 0.2, 2.1, genes))
    shift = shift if name == "condition" else None
    probe = Probe(0.72, 0.5, 0.6, 0.84, 0.01, 0.62, "replicates", 4, 900, 4)
    carried = tuple(
        FactorInEmbedding(
            embedding,
            VarianceShares(0.3, *rng.uniform(-0.1, 0.2, 2), partial=0.1),
            probe if embedding != embeddings[0] else None,
            Purity(0.7, 0.5, 900),
        )
        for embedding in embeddings
    )
    why = None if shift else "no counts were given"
    return FactorEffect(
        name, name == "condition", "label", "donor", {"a": 700, "b": 800}, {"a": 4, "b": 4}, 0, shift, why, carried
    )


def integration_page():
    labels, places, rng = blobs(1)
    names = ["whole-human", "/a/long/name/of/continual-pretraining", "HVG + PCA"]
    panels = {name: places + 0.3 * number * rng.standard_normal(places.shape) for number, name in enumerate(names)}
    fields = set(METRICS) - set(AVERAGES)
    scores = tuple(
        IntegrationScores(name=name, undefined={"kbet": "no label has enough cells"}, **dict.fromkeys(fields, 0.5))
        for name in names
    )
    effects = [effect(name, names, rng) for name in ("donor_id", "condition", "n_genes")]
    donors = np.array([f"donor {number:02d}" for number in rng.integers(12, size=N)], object)
    genes = rng.poisson(1800, N)
    columns = [Column("cell_type", labels), Column("donor_id", donors), Column("n_genes", genes)]
    stills = [
        Picture(umap_scatter(place_N2, labels.tolist(), name, half=True), name) for name, place_N2 in panels.items()
    ]
    view = Scatter(panels, columns, [], "UMAP of 1,500 cells.")
    groups = {key: genes[donors == key] for key in sorted(set(donors))}
    facts, pictures = {"cells": N}, [Picture(histogram(groups, "Genes per cell", "genes"), "Genes per cell.")]
    return integration_report("Integration", facts, Integration(N, {}, {}, scores), effects, view, stills, pictures)


REPORTS = {"map": mapping_page, "integrate": integration_page}
COLUMNS = {
    "map": ["predicted cell_type", "true cell_type", "right or wrong", HOSTILE, "obs_id", "n_genes"],
    "integrate": ["cell_type", "donor_id", "n_genes"],
}
SCREEN = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE = {"viewport": {"width": 360, "height": 740}, "color_scheme": "light", "has_touch": True, "is_mobile": True}
DARK = {"color_scheme": "dark"}

# Texts with less than 4.5 to 1 between their colour and what is behind: WCAG 2.2, https://www.w3.org/TR/WCAG22.
UNREADABLE = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return (channels(colour)[3] ?? 1) > 0.5 ? colour : behind(element.parentElement);
  };
  return [...document.querySelectorAll("body *")].filter((element) => {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("script, style, option")) return false;
    const style = getComputedStyle(element);
    const lights = [light(element.closest("svg") ? style.fill : style.color), light(behind(element))];
    return Math.max(...lights) / Math.min(...lights) < 4.5;
  }).map((element) => element.textContent);
}"""

NAMELESS = """() => [...document.querySelectorAll("select, button, [role=img], [role=group]")].filter(
  (element) => !(element.ariaLabel || element.labels?.[0]?.textContent.trim() || element.textContent.trim())
).length"""

# The last cell, which is on top of all others, in the first panel: where it is and how it is drawn.
TOP = """() => {
  const document_ = Bokeh.documents.at(-1), panel = document_.roots()[0].children[0];
  const view = Bokeh.index.find_one(panel);
  const { data } = document_.get_model_by_name("cells"), cell = data.alpha.length - 1;
  const { sx, sy } = view.views.find_one(panel.renderers[0]).glyph, canvas = view.canvas_view.primary.canvas;
  const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
  const copy = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, Math.floor(sx[cell] * ratio), Math.floor(sy[cell] * ratio), 1, 1, 0, 0, 1, 1);
  const pixel = copy.getImageData(0, 0, 1, 1).data;
  const entry = [...document.querySelectorAll(".legend")][0].querySelectorAll("button")[data.c0[cell]];
  return {
    x: box.left + sx[cell], y: box.top + sy[cell], span: panel.x_range.end - panel.x_range.start,
    label: entry.querySelector("span").textContent, colour: getComputedStyle(entry.querySelector("i")).backgroundColor,
    pixel: `rgb(${[...pixel].slice(0, 3).join(", ")})`, alpha: pixel[3], obs_id: data.c4?.[cell],
    moves: panel.toolbar.tools.find((tool) => tool.type === "PanTool").active,
  };
}"""


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for name, make in REPORTS.items():
        (folder / f"{name}.html").write_text(make(), encoding="utf-8")
    return folder


@pytest.fixture
def opened(chromium, files):
    """Opens a report; at the end nothing may have failed, spoken up, or been asked for from outside."""
    contexts, problems = [], []

    def open_report(name, **look):
        contexts.append(chromium.new_context(**look))
        page, address = contexts[-1].new_page(), (files / f"{name}.html").as_uri()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on(
            "request", lambda request: problems.append(request.url) if not is_inside(request.url, address) else None
        )
        page.goto(address)
        if look.get("java_script_enabled", True):
            page.wait_for_function("Bokeh.documents.at(-1)?.is_idle && document.querySelector('.legend:not([hidden])')")
            page.locator(".plots").scroll_into_view_if_needed()
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert problems == []


def is_inside(url, address):
    return url == address or url.startswith(("data:", "blob:"))


def values_of(page):
    """What the tooltip says: column -> value."""
    page.wait_for_function("document.querySelector('.bk-Tooltip')")
    texts = page.locator(".bk-Tooltip .bk-tooltip-content").inner_text().split("\n")
    return dict(zip(texts[::2], texts[1::2], strict=True))


def assert_readable(page, look):
    assert page.evaluate("document.documentElement.scrollWidth") == look["viewport"]["width"]
    assert page.evaluate(UNREADABLE) == []
    assert page.locator(".still").is_hidden()
    assert page.evaluate(NAMELESS) == 0


@pytest.mark.parametrize("look", [SCREEN, PHONE], ids=["screen", "phone"])
@pytest.mark.parametrize("name", REPORTS)
def test_a_dark_report_is_readable(opened, name, look):
    assert_readable(opened(name, **look | DARK), look)


@pytest.mark.parametrize("name", REPORTS)
def test_the_cells_can_be_used_with_a_mouse(opened, name):
    page = opened(name, **SCREEN)
    assert_readable(page, SCREEN)
    entries = page.locator(".legend:visible button")
    names = entries.locator("span").all_text_contents()
    counts = [int(text.replace(",", "")) for text in entries.locator("b").all_text_contents()]
    assert sorted(names) == sorted([*LABELS, *(["Unknown"] if name == "map" else [])])
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == N
    top = page.evaluate(TOP)
    assert (top["pixel"], top["alpha"]) == (top["colour"], 255)

    page.mouse.move(top["x"] + 1, top["y"] + 1)
    values = values_of(page)
    assert list(values) == COLUMNS[name]
    assert next(iter(values.values())) == top["label"]
    assert values.get("obs_id") == top["obs_id"]
    assert re.fullmatch(r"1,\d\d\d|2,\d\d\d", values["n_genes"])

    before = page.evaluate("scrollY")
    page.mouse.wheel(0, 50)
    page.wait_for_timeout(500)
    again = page.evaluate(TOP)
    assert (page.evaluate("scrollY"), again["span"]) == (before + 50, top["span"]), "the page scrolls: all is seen"
    page.mouse.move(again["x"], again["y"])
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(300)
    near = page.evaluate(TOP)
    assert near["span"] < 0.8 * top["span"]
    assert (near["x"], near["y"]) == pytest.approx((again["x"], again["y"]), abs=1.5)
    page.mouse.down()
    page.mouse.move(near["x"] + 30, near["y"] + 20, steps=4)
    page.mouse.up()
    page.wait_for_timeout(300)
    moved = page.evaluate(TOP)
    assert (moved["x"], moved["y"]) == pytest.approx((near["x"] + 30, near["y"] + 20), abs=1.5)
    page.mouse.dblclick(moved["x"], moved["y"])
    page.wait_for_timeout(300)
    assert page.evaluate(TOP)["span"] == pytest.approx(top["span"])

    other = entries.nth(0 if names[0] != top["label"] else 1)
    other.click()
    page.wait_for_timeout(300)
    assert other.get_attribute("aria-pressed") == "true"
    assert page.evaluate(TOP)["alpha"] < 100, "what is not singled out is faded"
    other.click()
    page.wait_for_timeout(300)
    assert page.evaluate(TOP)["alpha"] == 255

    options = page.locator("select option").all_text_contents()
    assert options == [column for column in COLUMNS[name] if column != "obs_id"]
    page.locator("select").select_option(label="n_genes")
    page.wait_for_timeout(300)
    assert page.locator(".legend:visible .strip").count() == 1
    assert page.evaluate(TOP)["pixel"] != top["pixel"]


@pytest.mark.parametrize("name", REPORTS)
def test_the_cells_can_be_used_with_fingers(opened, name):
    page = opened(name, **PHONE)
    assert_readable(page, PHONE)
    top = page.evaluate(TOP)
    assert not top["moves"], "one finger scrolls the page"
    page.touchscreen.tap(top["x"], top["y"])
    assert list(values_of(page)) == COLUMNS[name]
    box = page.locator(".bk-Tooltip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    touch = page.context.new_cdp_session(page)
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 70), ("touchMove", 100)):
        points = [{"x": 180 + side * apart / 2, "y": top["y"], "id": side} for side in (-1, 1)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(300)
    near = page.evaluate(TOP)
    assert near["span"] < 0.8 * top["span"]
    assert near["moves"], "one finger moves what is zoomed"


@pytest.mark.parametrize("name", REPORTS)
def test_paper_and_pages_without_scripts_get_the_pictures(opened, name):
    printed, unscripted = opened(name, **SCREEN | DARK), opened(name, java_script_enabled=False, **SCREEN)
    printed.emulate_media(media="print")
    for page in (printed, unscripted):
        stills = page.locator(".still svg" if name == "map" else ".pictures svg:has(image)")
        assert stills.count() == (1 if name == "map" else 3)
        assert all(still.is_visible() and still.locator("image").count() for still in stills.all())
        assert page.locator(".plots, select").first.is_hidden()
    assert printed.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(printed.pdf()) > 50_000
