"""Pictures: the same bytes for the same content, and what is drawn in them."""

import base64
import re
import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_distances

from scgpt_ray.errors import ConfigError, InputError
from scgpt_ray.evaluation.labels.metrics import score_labels
from scgpt_ray.evaluation.labels.selective_accuracy import selective_accuracy
from scgpt_ray.evaluation.report import plots
from scgpt_ray.evaluation.report.palette import GREY
from scgpt_ray.evaluation.report.picture import FAINT, GRID, INK, Picture, png
from scgpt_ray.evaluation.report.plots import (
    MAX_GROUPS,
    MAX_LABELS,
    confusion_heatmap,
    coverage_accuracy,
    histogram,
    label_counts,
    recall_curve,
    reliability_diagram,
    shortened,
    umap_scatter,
)
from scgpt_ray.evaluation.report.run_plots import genes_per_cell, loss_curve, training_curve
from scgpt_ray.evaluation.umap import umap_coordinates
from scgpt_ray.index.recall import Point
from scgpt_ray.index.searcher import SearchParams
from scgpt_ray.mapping.calibrator import reliability

NAMES = ["CD4 T", "B", "costs $5 & <more>", "a label that is much longer than any axis has room for", "NK"]
TRIED = [Point(nprobe, rerank, 0.9, 1 - 0.3 / nprobe / (1 + rerank), 1) for nprobe in (1, 4, 16) for rerank in (0, 16)]
TRAINED = [{"step": step, "loss": 5.0 / step, "cell": 3.0, "label": 1.5} for step in (10, 20)]
OBJECTIVES = ["loss", "cell", "label"]


def draw(name, n=200):
    """A picture of n cells."""
    rng = np.random.default_rng(0)
    truth, said = (np.array(NAMES, object)[rng.integers(len(NAMES), size=n)].tolist() for _ in range(2))
    confidence, right = rng.random(n), rng.random(n) < 0.7
    bins, curve = reliability(confidence, right), selective_accuracy(confidence, right)
    places = rng.standard_normal((n, 2))
    return {
        "confusion": lambda: confusion_heatmap(score_labels(truth, said, confidence, NAMES[:3])),
        "reliability": lambda: reliability_diagram({"share of the votes": bins, "calibrated": bins}),
        "coverage": lambda: coverage_accuracy({"scGPT": curve, "PCA + kNN": curve}, (0.8, curve.at(0.8))),
        "histogram": lambda: histogram({"right": confidence, "wrong": np.zeros(1)}, "x", "x", bins=20, range=(0, 1)),
        "one value": lambda: histogram({"query cells": np.zeros(1, np.int32)}, "Genes per cell", "genes"),
        "counts": lambda: label_counts(Counter(truth), "Predicted cell_type"),
        "umap": lambda: umap_scatter(places, truth, "Predicted cell_type", np.ones((3, 2))),
        "recall": lambda: recall_curve(TRIED, SearchParams(4, 16), 0.95),
        "one point": lambda: recall_curve(TRIED[:1], TRIED[0].params, 0.5),
        "training": lambda: training_curve(TRAINED, OBJECTIVES, 20),
        "genes": lambda: genes_per_cell([3, 0, 5, 1], [0, 1, 2, 3], 3),
    }[name]()


def size(content):
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


@pytest.mark.parametrize("n", [200, 1])
@pytest.mark.parametrize(
    "name",
    ["confusion", "reliability", "coverage", "histogram", "one value", "counts", "umap", "recall", "one point",
     "training", "genes"],
)  # fmt: skip
def test_every_picture_is_repeatable_and_in_the_colours_of_the_page(name, n):
    picture, again = Picture(draw(name, n), "caption"), Picture(draw(name, n), "caption")
    svg = picture.svg()
    assert svg == again.svg()
    content = png(picture.figure)
    assert content == png(again.figure)
    width, height = size(content)
    assert 300 < width < 2000
    assert 200 < height < 2000
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert not re.search("|".join([INK, FAINT, GRID]), svg)
    assert not re.search(r"<path[^>]*fill: (white|#f[ef]{5})", svg), "no white ground on a dark page"


def test_pictures_of_one_page_share_no_ids():
    first, second = (set(re.findall(r'id="([pm]\w{9,})"', Picture(draw("coverage"), text).svg())) for text in "ab")
    assert first
    assert not first & second, "those of a hidden picture would hide parts of another"


def test_names_are_texts_of_the_picture_and_escaped():
    svg = Picture(draw("counts"), "caption").svg()
    assert "costs $5 &amp; &lt;more&gt;</text>" in svg


def test_a_confusion_has_a_pixel_per_cell_of_the_matrix():
    """Drawn at the resolution of the picture, one of 100 labels would take 0.5 GB."""
    figure = draw("confusion")
    n_rows, n_columns = figure.axes[0].images[0].get_array().shape
    svg = Picture(figure, "caption").svg()
    (content,) = re.findall(r'"data:image/png;base64,\n([^"]+)"', svg)
    assert size(base64.b64decode(content)) == (n_columns, n_rows)
    assert "image-rendering:pixelated" in svg, "a browser would blur it"


def test_pyplot_stays_untouched():
    draw("counts")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_beyond_twenty_the_rare_labels_are_drawn_together():
    many = [f"type {place:02d}" for place in range(30) for _ in range(40 - place)]
    coloured = list(plots._coloured(many))
    assert len(coloured) == MAX_LABELS
    assert coloured[0][0] == "type 00"
    assert coloured[-1][:2] == ("other (11 labels)", GREY)
    assert len({colour for _, colour, _ in coloured}) == MAX_LABELS
    assert sorted(np.concatenate([cells for *_, cells in coloured]).tolist()) == list(range(len(many)))
    twenty = many[: sum(40 - place for place in range(20))]
    assert [name for name, *_ in plots._coloured(twenty)] == [f"type {place:02d}" for place in range(20)]
    assert sum(plots._most_frequent(Counter(many)).values()) == len(many)


def test_what_is_no_label_is_grey():
    coloured = {name: colour for name, colour, _ in plots._coloured(["T", "Unknown", "Unknown", "B"])}
    assert coloured["Unknown"] == GREY
    assert GREY not in (coloured["T"], coloured["B"])


def test_long_names_keep_both_ends():
    ends = [f"CD14-positive, CD16-negative classical monocyte of the {place}" for place in ("gut", "lung")]
    assert len({shortened(name) for name in ends}) == 2
    assert all(len(shortened(name)) <= 34 for name in ends)


def test_forty_labels_fit_the_page():
    names = [f"CD14-positive, CD16-negative classical monocyte {number}" for number in range(40)]
    width, _ = size(png(confusion_heatmap(score_labels(names, names, np.ones(40), names))))
    assert width < 2000


def test_the_smallest_groups_are_drawn_together():
    figure = histogram({f"d{number:02d}": np.arange(number + 1) for number in range(12)}, "Genes", "genes")
    names = figure.axes[0].get_legend_handles_labels()[1]
    assert len(names) == MAX_GROUPS
    assert (names[0], names[-1]) == ("d11 (12, mean 5.50)", "other (5) (15, mean 1.33)")
    assert figure.axes[0].get_title("left") == "Genes, 78 cells"


def test_a_panel_for_each_objective():
    figure = training_curve(TRAINED, OBJECTIVES, 20)
    assert [panel.get_title("left") for panel in figure.axes] == ["loss", "cell", "label"]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[10, 0.5], [20, 0.25]]


@pytest.mark.parametrize(("n", "points"), [(3, 3), (1203, 500)])
def test_no_step_is_missing_from_a_loss_curve(n, points):
    losses = np.arange(n, dtype=np.float64)
    axes = loss_curve(losses, TRAINED, 20).axes[0]
    x, mean = axes.lines[0].get_xydata().T
    assert len(x) == points
    assert x == pytest.approx(mean + 1), "steps count from 1, and step n has a loss of n - 1"
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0, n - 1)
    assert axes.lines[1].get_xydata().tolist() == [[10, 0.5], [20, 0.25]]


@pytest.mark.slow
def test_umap_is_repeatable_and_keeps_groups_apart():
    pytest.importorskip("umap", reason="needs umap-learn")
    rng = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)[rng.integers(2, size=120)]
    vectors = (centres + 0.05 * rng.standard_normal((120, 8))).astype(np.float32)
    first = umap_coordinates(vectors, seed=1)
    assert (first.shape, first.dtype) == ((120, 2), np.float32)
    np.testing.assert_array_equal(first, umap_coordinates(vectors, seed=1))
    group = centres[:, 0] == 1
    gap = np.linalg.norm(first[group].mean(axis=0) - first[~group].mean(axis=0))
    assert gap > 2 * max(first[group].std(axis=0).max(), first[~group].std(axis=0).max())


@pytest.mark.slow
def test_what_numba_compiles_for_a_umap_is_kept_for_the_next_process():
    """It takes five seconds, most of what a small one takes."""
    layouts = pytest.importorskip("umap.layouts", reason="needs umap-learn")
    umap_coordinates(np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32), seed=0)
    compiled = layouts._nb_optimize_layout_euclidean_single_epoch.stats
    assert compiled.cache_path
    assert compiled.cache_hits or compiled.cache_misses


@pytest.mark.slow
def test_neighbours_of_a_umap_are_exact_and_need_no_search_of_its_own(monkeypatch):
    umap = pytest.importorskip("umap", reason="needs umap-learn")
    fitted = []

    class Kept(umap.UMAP):
        def fit(self, *arguments, **options):
            fitted.append(self)
            return super().fit(*arguments, **options)

    monkeypatch.setattr(umap, "UMAP", Kept)
    vectors = np.random.default_rng(0).standard_normal((300, 12)).astype(np.float32)
    vectors[100:120] = 4 * vectors[7]  # more cells of one direction than neighbours
    umap_coordinates(vectors, seed=0)
    (layout,) = fitted
    assert layout._knn_indices is layout.precomputed_knn[0], "the given neighbours were used"
    assert layout._knn_indices[:, 0].tolist() == list(range(300)), "each cell is its own first neighbour"
    assert not layout._knn_dists[:, 0].any()
    assert layout._knn_indices[119, 1:].tolist() == [7, *range(100, 113)], "ties by position"
    expected = np.sort(cosine_distances(vectors.astype(np.float64)), axis=1)[:, :15]
    np.testing.assert_allclose(layout._knn_dists, expected, atol=1e-6)


def test_too_few_cells_for_a_umap():
    pytest.importorskip("umap", reason="needs umap-learn")
    with pytest.raises(InputError, match="15 cells for a UMAP"):
        umap_coordinates(np.ones((15, 4), np.float32), seed=0)


def test_without_umap_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"pip install 'scgpt-ray\[eval\]'"):
        umap_coordinates(np.ones((20, 4), np.float32), seed=0)


@pytest.mark.parametrize(("cells", "points"), [(1, 1), (1000, 1000), (5000, 1000)])
def test_a_curve_of_many_cells_is_drawn_by_some(cells, points):
    curve = selective_accuracy(np.linspace(1, 0, cells), np.arange(cells) % 3 > 0)
    x, y = coverage_accuracy({"scGPT": curve}).axes[0].lines[0].get_data()
    assert len(x) == points
    places = np.rint(x * cells).astype(int) - 1
    assert (places[0], places[-1]) == (0, cells - 1) if cells > 1 else places.tolist() == [0]
    assert len(set(places.tolist())) == points
    assert np.array_equal(y, curve.accuracy[places])
