"""The reports in a real browser: nothing fails, overlaps, is cut off or unreadable, and the view of cells works.

A page of frames holds every report at two widths; a script in it uses each report as a person would, and writes what it
found into the page, which the browser prints.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scgpt_ray.evaluation.factors.effects import FactorEffect, FactorInEmbedding
from scgpt_ray.evaluation.factors.expression import DrivenGene, ExpressionShift
from scgpt_ray.evaluation.factors.probe import Probe, Purity
from scgpt_ray.evaluation.factors.variance import VarianceShares
from scgpt_ray.evaluation.integration.metrics import METRICS, Integration, IntegrationScores
from scgpt_ray.evaluation.labels.label_evaluation import evaluate
from scgpt_ray.evaluation.labels.metrics import outcomes
from scgpt_ray.evaluation.report.bars import coverage_bars
from scgpt_ray.evaluation.report.histograms import OUTCOMES, confidence_histogram, distance_histogram, genes_histogram
from scgpt_ray.evaluation.report.integration_report import integration_report
from scgpt_ray.evaluation.report.mapping_report import map_report
from scgpt_ray.evaluation.report.page import Picture
from scgpt_ray.evaluation.report.plots import confusion_heatmap, coverage_accuracy, reliability_diagram, umap_scatter
from scgpt_ray.evaluation.report.scatter import Column, Scatter

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome")

NAMES = [
    "CD4-positive, alpha-beta T cell", "CD14-positive, CD16-negative classical monocyte", "natural killer cell",
    "effector memory CD8-positive, alpha-beta T cell, terminally differentiated", "naive B cell", "platelet",
    "CD16-negative, CD56-bright natural killer cell, human", "plasmacytoid dendritic cell", "erythroid lineage cell",
    "naive thymus-derived CD4-positive, alpha-beta T cell", "class switched memory B cell", "mucosal invariant T cell",
    "central memory CD4-positive, alpha-beta T cell", "gamma-delta T cell", "type II pneumocyte", "plasmablast",
    "CD1c-positive myeloid dendritic cell", "hematopoietic stem cell", "group 3 innate lymphoid cell", "mast cell",
]  # fmt: skip
LABELS = {2: NAMES[:2], 40: [*NAMES, *(f"{name} of the lamina propria" for name in NAMES)]}


def cells(n_labels, n=1500):
    """Blobs on a grid, the first labels the most frequent; the last three cells of all are alone in their corners."""
    rng = np.random.default_rng(n_labels)
    label = np.sort(np.minimum(rng.geometric(2.5 / (n_labels + 3), n) - 1, n_labels - 1))
    side = int(np.ceil(np.sqrt(n_labels)))
    places = np.stack([label % side, label // side], axis=1) * 4 + 0.6 * rng.standard_normal((n, 2))
    return np.array(LABELS[n_labels], object)[label], places.astype(np.float32), rng


def mapping_page(n_labels):
    truth, places, rng = cells(n_labels)
    said = np.where(rng.random(len(truth)) < 0.85, truth, rng.permutation(truth))
    sure = np.round(rng.beta(5, 2, len(truth)), 2)
    rejected = sure < 0.4
    shown = np.where(rejected, "Unknown", said)
    evaluation = evaluate(truth, said, {"share of the votes": sure, "probability of being right": sure**1.2},
                      rejected, dict.fromkeys([*LABELS[n_labels], "Unknown"], 50))  # fmt: skip
    outcome = np.full(len(truth), None, object)
    groups = outcomes(truth, said)
    for name, rows in groups.items():
        outcome[rows] = name
    n_behind = 400
    behind = places[rng.integers(len(places), size=n_behind)] + rng.standard_normal((n_behind, 2)).astype(np.float32)
    nothing = [None] * n_behind
    genes = rng.poisson(1800, len(truth))
    caption = "UMAP of 1,500 of 1,503 query cells, which the legend counts."
    view = Scatter(
        panels={"UMAP": np.concatenate([places, behind])},
        columns=[
            Column("predicted cell_type", [*shown, *rng.choice(LABELS[n_labels], n_behind)], "cell_type"),
            Column("true cell_type", [*truth, *nothing], "cell_type"),
            Column("right or wrong", [*outcome, *nothing], colours=OUTCOMES),
            Column("probability of being right", [*sure**1.2, *nothing]),
            Column("obs_id", [f"AAACCTGAGAAACCAT-{number}" for number in range(len(truth) + n_behind)]),
            Column("n_genes", [*genes, *nothing]),
        ],
        pictures=[Picture(umap_scatter(places, shown.tolist(), "Predicted cell_type", behind), caption)],
        caption=caption,
        n_front=len(truth),
    )
    groups = {name: sure[rows] for name, rows in groups.items()}
    coverage = {"fraction": 0.934, "genes_matched": 18123, "genes_total": 32738, "missing": [["MALAT1", 0.021]]}
    pictures = [
        Picture(confusion_heatmap(evaluation.scores), "Where the vote put the cells of each true label."),
        Picture(confidence_histogram(groups), "Confidence of what was voted, rejected or not."),
        Picture(distance_histogram(groups), "Distance of each cell to the farthest of its neighbours."),
        Picture(
            coverage_accuracy({"share of the votes": evaluation.selective_accuracy}, (0.8, 0.9)), "What rejecting buys."
        ),
        Picture(reliability_diagram(evaluation.reliability), "How often query cells are right, by their confidence."),
        Picture(genes_histogram({"query cells": genes}), "Genes of the vocabulary; 3 cells have none."),
    ]
    facts = {"query": "/data/" + "a-long-folder-name/" * 6 + "query.h5ad", "query cells": 1503, "votes": "balanced"}
    covered = coverage_bars(coverage, 1503, 3)
    return map_report("pbmc3k mapped onto pbmc_facs", facts, view, covered, pictures, evaluation)


def effect(name, n_embeddings, rng):
    genes = tuple(DrivenGene(f"ISG{number}", "stimulated", 1.4, 2.0, 1e-9) for number in range(4))
    shift = ExpressionShift(900, 4, "stimulated", 1.1, 0.1, 0.4, 1200, 40, genes) if name == "condition" else None
    carried = []
    for number in range(n_embeddings):
        share = VarianceShares(0.3 + 0.1 * number, *rng.uniform(0, 0.2, 2), partial=0.1)
        probe = Probe("R2" if name == "n_genes" else "balanced accuracy", 0.72, 0.5, 0.01, "cells", 900, 4)
        carried.append(
            FactorInEmbedding(["whole-human", "/a/long/name/of/continual-pretraining", "HVG + PCA"][number], share,
                              probe if number else None, Purity(0.7, 0.5, 900))
        )  # fmt: skip
    return FactorEffect(name, {"a": 700, "b": 800}, 0, shift, None if shift else "no counts were given", tuple(carried))


def integration_page(n_labels, n_embeddings):
    labels, places, rng = cells(n_labels)
    donors = np.array([f"donor {number:02d}" for number in rng.integers(12, size=len(labels))], object)
    effects = [effect(name, n_embeddings, rng) for name in ("donor_id", "condition", "n_genes")]
    names = [carried.embedding for carried in effects[0].embeddings]
    panels = {name: places + 0.3 * number * rng.standard_normal(places.shape) for number, name in enumerate(names)}
    fields = set(METRICS) - {"avg_bio", "avg_batch"}
    scores = tuple(
        IntegrationScores(name=name, undefined={"kbet": "no label has enough cells"}, **dict.fromkeys(fields, 0.5))
        for name in names
    )
    integration = Integration(len(labels), {}, {}, scores)
    genes = rng.poisson(1800, len(labels))
    columns = {"cell_type": labels, "donor_id": donors, "n_genes": genes}
    pictures = [
        Picture(umap_scatter(places_N2, values.tolist(), f"{name} by {column}"), f"{name} by {column}")
        for name, places_N2 in panels.items()
        for column, values in {"cell_type": labels, "donor_id": donors}.items()
    ]
    view = Scatter(panels, [Column(*column) for column in columns.items()], pictures, "UMAP of 1,500 cells.")
    histogram = Picture(genes_histogram({key: genes[donors == key] for key in set(donors)}), "Genes per cell.")
    facts = {"embeddings": ", ".join(names), "cells": 1500}
    return integration_report("Integration of " + ", ".join(names), facts, integration, effects, view, [histogram])


REPORTS = {
    "map-2": lambda: mapping_page(2),
    "map-40": lambda: mapping_page(40),
    "integrate-2": lambda: integration_page(2, 1),
    "integrate-40": lambda: integration_page(40, 3),
}


WIDTHS = {"screen": 1280, "phone": 360}
DARK = "--blink-settings=preferredColorScheme=0"
# Frames come when the machine finds time, timers in order of the browser's own virtual time.
CATCH = (
    "<script>window.requestAnimationFrame = (act) => setTimeout(act, 0);"
    "window.errors = []; addEventListener('error', (e) => errors.push(e.message));"
    "addEventListener('unhandledrejection', (e) => errors.push(String(e.reason)));</script>"
)
MEASURE = f"<script type='module'>{Path(__file__).with_name('measure_report.js').read_text()}</script>"


@pytest.fixture(scope="module")
def pages():
    return {name: make() for name, make in REPORTS.items()}


def browse(page, *options):
    """What Chromium prints."""
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *options, page.as_uri()]
    return subprocess.run(words, capture_output=True, check=True, timeout=200).stdout.decode()


def frame(name, page, width, *, scripts=True):
    sandbox = "" if scripts else 'sandbox="allow-same-origin"'
    content = page.replace("<head>", f"<head>{CATCH}").replace("</body>", f"{MEASURE}</body>") if scripts else page
    style = f"border: 0; width: {width}px; height: 1200px"
    return f'<iframe name="{name}" {sandbox} style="{style}" srcdoc="{html.escape(content)}"></iframe>'


COLLECT = """
<script>window.found = {};</script>{frames}<pre></pre><script>
const isDone = setInterval(() => {
  if (Object.keys(found).length < {n}) return;
  clearInterval(isDone);
  for (const frame of document.querySelectorAll("iframe[sandbox]")) {
    const page = frame.contentDocument;
    found[frame.name] = {
      stills: [...page.querySelectorAll(".still img")].filter((image) => image.checkVisibility()).length,
      controls: page.querySelectorAll("canvas, select").length,
    };
  }
  document.body.replaceChildren(JSON.stringify(found));
}, 100);
</script>"""


@pytest.fixture(scope="module", params=["light", "dark"])
def found(request, pages, tmp_path_factory):
    """What the script found: name of report and of width -> findings; and without scripts, in light only."""
    place = tmp_path_factory.mktemp("reports") / "frames.html"
    frames = [frame(f"{name} {kind}", page, width) for name, page in pages.items() for kind, width in WIDTHS.items()]
    n_measured = len(frames)
    if request.param == "light":
        frames += [frame(f"{name} unscripted", page, 1280, scripts=False) for name, page in pages.items()]
    body = COLLECT.replace("{frames}", "".join(frames)).replace("{n}", str(n_measured))
    place.write_text(f'<!doctype html><meta charset="utf-8"><body>{body}</body>', encoding="utf-8")
    options = [DARK] if request.param == "dark" else []
    dom = browse(place, "--dump-dom", "--virtual-time-budget=60000", "--window-size=1400,1000", *options)
    match = re.search(r"<body>(\{.*\})</body>", dom, re.DOTALL)
    assert match, "the script did not come to its end: " + dom[-2000:]
    return request.param, json.loads(html.unescape(match[1]))


def test_every_report_is_whole_and_readable(found):
    scheme, reports = found
    measured = {name: report for name, report in reports.items() if not name.endswith("unscripted")}
    assert len(measured) == len(REPORTS) * len(WIDTHS)
    for name, report in measured.items():
        assert report["errors"] == [], name
        assert report["width"] == WIDTHS[name.split()[1]]
        assert report["isDark"] == (scheme == "dark")
        assert report["overflow"] <= 0, f"{name}: the page can be scrolled sideways"
        for problem in ("cut", "overlaps", "faint"):
            assert report[problem] == [], f"{name}: {problem}"
        assert report["nameless"] == 0, name
        assert report["still"] == 0, "the pictures for paper are not shown"


def test_the_view_of_cells_can_be_used(found):
    for name, report in found[1].items():
        if name.endswith("unscripted"):
            continue
        n_labels = int(name.split()[0].split("-")[1])
        used = report["used"]
        unknown = ["Unknown"] if name.startswith("map") else []
        assert sorted(report["legend"]) == sorted([*LABELS[n_labels], *unknown]), name
        assert report["counts"] == sorted(report["counts"], reverse=True)
        assert sum(report["counts"]) == 1500
        assert report["canvases"] == (3 if name.startswith("integrate-40") else 1)
        assert used["colours"] == len(report["legend"]), f"{name}: every label has a colour of its own, and is drawn"
        assert used["hover"]["isItsColour"], f"{name}: {used['hover']}"
        assert used["hover"]["isInside"], f"{name}: {used['hover']}"
        assert used["hover"]["rows"] == (6 if name.startswith("map") else 3), "all columns of the cell"
        assert used["wheel"] == {"changed": True, "stays": True}, name
        assert (used["dragged"], used["reset"], used["pinch"], used["keyReset"]) == (True,) * 4, name
        assert used["single"] == {"pressed": "true", "onlyItsColour": True}, name
        assert used["unsingled"]
        assert used["recoloured"] == {"changed": True, "bar": True}
        assert "obs_id" not in used["options"], "names of cells are told, and are no colour"


def test_without_scripts_the_pictures_are_shown(found):
    scheme, reports = found
    if scheme == "dark":
        return
    for name, n_pictures in (("map-2", 1), ("map-40", 1), ("integrate-2", 2), ("integrate-40", 6)):
        assert reports[f"{name} unscripted"] == {"stills": n_pictures, "controls": 0}


def test_paper_gets_the_pictures(pages, tmp_path):
    (tmp_path / "report.html").write_text(pages["map-40"], encoding="utf-8")
    browse(tmp_path / "report.html", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    printed = re.findall(rb"/Subtype /Image\s+/Width (\d+)\s+/Height (\d+)", (tmp_path / "report.pdf").read_bytes())
    drawn = umap_scatter(np.zeros((1, 2)), ["x"], "x")
    size = tuple(str(int.from_bytes(drawn[start : start + 4])).encode() for start in (16, 20))
    assert size in printed, "the still picture of the cells"
