import sys

import numpy as np
import pytest

from scgpt_ray.errors import ConfigError, InputError
from scgpt_ray.evaluation.labels.metrics import score_labels
from scgpt_ray.evaluation.labels.selective_accuracy import coverage_curve
from scgpt_ray.evaluation.report import histograms, plots
from scgpt_ray.evaluation.report.canvas import shortened
from scgpt_ray.evaluation.report.histograms import MAX_GROUPS, confidence_histogram, distance_histogram, genes_histogram
from scgpt_ray.evaluation.report.palette import GREY
from scgpt_ray.evaluation.report.plots import (
    confusion_heatmap,
    coverage_accuracy,
    label_counts,
    reliability_diagram,
    umap_scatter,
)
from scgpt_ray.evaluation.report.recall_plot import recall_curve
from scgpt_ray.evaluation.umap import umap_coordinates
from scgpt_ray.index.recall import Point
from scgpt_ray.index.searcher import SearchParams
from scgpt_ray.mapping.reliability import reliability

NAMES = ["CD4 T", "B", "costs $5 & <more>", "a label that is much longer than any axis has room for", "NK"]

TRIED = [Point(nprobe, rerank, 0.9, 1 - 0.3 / nprobe / (1 + rerank), 1) for nprobe in (1, 4, 16) for rerank in (0, 16)]


@pytest.fixture
def random():
    """The same numbers in every test, whichever ran before it."""
    return np.random.default_rng(0)


def pixels(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def labels(random, n):
    return [NAMES[place] for place in random.integers(len(NAMES), size=n)]


@pytest.fixture
def mapping(random):
    """Truth and predictions of 200 cells, and a confidence with what it was right about."""
    return labels(random, 200), labels(random, 200), random.random(200), random.random(200) < 0.7


PLACES = np.arange(400.0).reshape(200, 2)
PICTURES = {
    "reliability": lambda _t, _p, sure, right: reliability_diagram(
        dict.fromkeys(("share of the votes", "calibrated"), reliability(sure, right))
    ),
    "coverage": lambda _t, _p, sure, right: coverage_accuracy({"scGPT": coverage_curve(sure, right)}),
    "coverage of two": lambda _t, _p, sure, right: coverage_accuracy(
        dict.fromkeys(("scGPT", "PCA + kNN"), coverage_curve(sure, right)), (0.8, coverage_curve(sure, right).at(0.8))
    ),
    "confusion": lambda truth, predicted, sure, _r: confusion_heatmap(score_labels(truth, predicted, sure, NAMES[:3])),
    "confidence of two": lambda *_: confidence_histogram({"right": np.array([1.0, 0.5]), "wrong": np.array([0.2])}),
    "confidence": lambda *_: confidence_histogram({"all cells": np.array([0.0, 1.0], np.float32)}),
    "probability": lambda *_: confidence_histogram({"all cells": np.array([0.5])}, "probability of being right"),
    "distance": lambda *_: distance_histogram({"right": np.array([0.1, 0.3]), "wrong": np.array([0.7])}),
    "genes": lambda *_: genes_histogram({f"donor {number}": np.array([number, 900]) for number in range(12)}),
    "recall": lambda *_: recall_curve(TRIED, SearchParams(4, 16), 0.95),
    "labels": lambda truth, *_: label_counts(truth, "Predicted cell_type"),
    "cells": lambda truth, *_: umap_scatter(PLACES, truth, "Predicted cell_type"),
    "cells on others": lambda truth, *_: umap_scatter(PLACES, truth, "Predicted cell_type", np.ones((3, 2))),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_every_picture_is_a_png_and_repeatable(draw, mapping):
    png = draw(*mapping)
    width, height = pixels(png)
    assert 300 < width < 2000
    assert 200 < height < 2000
    assert draw(*mapping) == png


def test_one_cell_is_enough():
    scores = score_labels(["T"], ["B"], np.ones(1), ["B"])
    for png in (
        confusion_heatmap(scores),
        label_counts(["T"], "x"),
        distance_histogram({"wrong": np.zeros(1)}),
        genes_histogram({"query cells": np.zeros(1, np.int32)}),
        recall_curve(TRIED[:1], TRIED[0].params, 0.5),
        reliability_diagram({"x": reliability(np.ones(1), np.ones(1, bool))}),
        coverage_accuracy({"x": coverage_curve(np.ones(1), np.ones(1, bool))}, (1.0, 1.0)),
        umap_scatter(np.zeros((1, 2)), ["T"], "x"),
    ):
        pixels(png)


def test_pyplot_stays_untouched():
    label_counts(["T"], "x")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_beyond_twenty_the_rare_labels_are_drawn_together(random):
    many = [f"type {place:02d}" for place in range(30) for _ in range(40 - place)]
    coloured = list(plots._coloured(many))
    assert len(coloured) == plots.MAX_LABELS
    assert coloured[0][0] == "type 00"
    assert coloured[-1][0] == "other (11 labels)"
    assert len({colour for _, colour, _ in coloured}) == plots.MAX_LABELS
    assert sorted(np.concatenate([cells for *_, cells in coloured]).tolist()) == list(range(len(many)))
    twenty = many[: sum(40 - place for place in range(20))]
    assert [name for name, *_ in plots._coloured(twenty)] == [f"type {place:02d}" for place in range(20)]
    pixels(umap_scatter(random.random((len(many), 2)), many, "many"))
    assert sum(plots._most_frequent(many).values()) == len(many)


def test_what_is_no_label_is_grey():
    coloured = {name: colour for name, colour, _ in plots._coloured(["T", "Unknown", "Unknown", "B"])}
    assert coloured["Unknown"] == GREY
    assert GREY not in (coloured["T"], coloured["B"])


def test_long_names_keep_both_ends():
    ends = [f"CD14-positive, CD16-negative classical monocyte of the {place}" for place in ("gut", "lung")]
    assert len({shortened(name) for name in ends}) == 2
    assert all(len(shortened(name)) <= 34 for name in ends)
    assert shortened("costs $5") == r"costs \$5"


def test_forty_labels_fit_the_page():
    names = [f"CD14-positive, CD16-negative classical monocyte {number}" for number in range(40)]
    width, _ = pixels(confusion_heatmap(score_labels(names, names, np.ones(40), names)))
    assert width < 2000


def test_only_the_largest_groups_are_told_apart():
    groups = {f"d{number:02d}": np.arange(number + 1) for number in range(12)}
    kept = histograms._largest(groups)
    assert list(kept) == [*(f"d{number:02d}" for number in range(11, 4, -1)), "other (5)"]
    assert len(kept) == MAX_GROUPS
    assert sum(map(len, kept.values())) == sum(map(len, groups.values()))


@pytest.mark.slow
def test_umap_is_repeatable_and_keeps_groups_apart(random):
    pytest.importorskip("umap", reason="needs umap-learn")
    centres = np.eye(8, dtype=np.float32)[random.integers(2, size=120)]
    vectors = (centres + 0.05 * random.standard_normal((120, 8))).astype(np.float32)
    first = umap_coordinates(vectors, seed=1)
    assert (first.shape, first.dtype) == ((120, 2), np.float32)
    np.testing.assert_array_equal(first, umap_coordinates(vectors, seed=1))
    group = centres[:, 0] == 1
    gap = np.linalg.norm(first[group].mean(axis=0) - first[~group].mean(axis=0))
    assert gap > 2 * max(first[group].std(), first[~group].std())


def test_too_few_cells_for_a_umap():
    pytest.importorskip("umap", reason="needs umap-learn")
    with pytest.raises(InputError, match="15 cells for a UMAP"):
        umap_coordinates(np.ones((15, 4), np.float32), seed=0)


def test_without_umap_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"pip install 'scgpt-ray\[eval\]'"):
        umap_coordinates(np.ones((20, 4), np.float32), seed=0)
