"""Histograms of cells, each a function that returns the bytes of a PNG."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FuncFormatter

from scgpt_ray.evaluation.report.canvas import SIDE_BY_SIDE, canvas, legend_below, only_grid, png, shortened, title
from scgpt_ray.evaluation.report.palette import GREY, STRONG

_LONGEST = 22

MAX_GROUPS = 8
"""Groups of cells in a histogram; the cells of smaller ones are drawn together."""

OUTCOMES = {"right": "#3f90da", "wrong": "#e76300", "no truth": GREY}
"""Colours of what became of cells."""


def confidence_histogram(
    confidence: Mapping[str, npt.NDArray[np.floating]], meaning: str = "share of the votes for the label"
) -> bytes:
    """How sure the votes were.

    Args:
        confidence: Name of a group of cells -> their confidences, 0 to 1; such as `right` and `wrong`.
        meaning: Of the confidence.
    """
    figure, axes = canvas(*SIDE_BY_SIDE)
    cells = _stacked(axes, confidence, np.linspace(0, 1, 21), "mean {:.2f}")
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"confidence: {meaning}")
    title(figure, f"Confidence of {cells:,} cells")
    return png(figure)


def distance_histogram(distance: Mapping[str, npt.NDArray[np.floating]]) -> bytes:
    """How far cells are from the reference.

    Args:
        distance: Name of a group of cells -> their distances, such as `right` and `wrong`; not all empty.
    """
    figure, axes = canvas(*SIDE_BY_SIDE)
    edges = np.histogram_bin_edges(np.concatenate(list(distance.values())), 30)
    cells = _stacked(axes, distance, edges, "mean {:.2f}")
    axes.set_xlabel("cosine distance to the farthest of the neighbours")
    title(figure, f"Distance of {cells:,} cells from the reference")
    return png(figure)


def genes_histogram(n_genes: Mapping[str, npt.NDArray[np.integer]]) -> bytes:
    """Genes of the vocabulary that cells have counts of.

    Args:
        n_genes: Name of a group of cells -> their numbers of genes, such as those of a batch key; not all empty. The
            largest come first, and those beyond MAX_GROUPS are drawn together.
    """
    figure, axes = canvas(*SIDE_BY_SIDE)
    groups = _largest(n_genes)
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), 30)
    cells = _stacked(axes, groups, edges, "mean {:,.0f}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,.0f}"))
    axes.set_xlabel("genes of the vocabulary with counts")
    title(figure, f"Genes per cell, {cells:,} cells")
    return png(figure)


def _largest(groups: Mapping[str, npt.NDArray[np.integer]]) -> dict[str, npt.NDArray[np.integer]]:
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    if len(ranked) <= MAX_GROUPS:
        return dict(ranked)
    kept, rest = ranked[: MAX_GROUPS - 1], ranked[MAX_GROUPS - 1 :]
    return {**dict(kept), f"other ({len(rest)})": np.concatenate([values for _, values in rest])}


def _stacked(axes: Any, groups: Mapping[str, npt.NDArray[Any]], edges: npt.NDArray[np.floating], mean: str) -> int:
    """Draw groups of cells on top of one another, their names above; the number of cells."""
    colours = dict(zip(groups, STRONG, strict=False)) | OUTCOMES
    axes.hist(
        list(groups.values()),
        bins=edges.tolist(),
        stacked=True,
        color=[GREY if name.startswith("other (") else colours[name] for name in groups],
        label=[
            f"{shortened(name, _LONGEST)} ({len(values):,}, {mean.format(np.mean(values))})"
            for name, values in groups.items()
        ],
        edgecolor="white",
        linewidth=0.6,
    )
    axes.set_ylabel("cells")
    legend_below(axes.figure, axes)
    only_grid(axes, "y")
    return sum(len(values) for values in groups.values())
