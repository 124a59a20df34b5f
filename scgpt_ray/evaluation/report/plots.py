"""The pictures of a mapping, each a function that returns the bytes of a PNG."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scgpt_ray.evaluation.labels.metrics import LabelScores
from scgpt_ray.evaluation.labels.selective_accuracy import SelectiveAccuracy
from scgpt_ray.evaluation.report.canvas import (
    FAINT,
    GRID,
    INK,
    SIDE_BY_SIDE,
    canvas,
    legend_below,
    only_grid,
    png,
    shortened,
    title,
)
from scgpt_ray.evaluation.report.palette import GREY, STRONG, colours_of
from scgpt_ray.mapping.calibrator import Reliability

MAX_LABELS = 20
"""Colours and bars that can be told apart; rarer labels are drawn together as `other`."""

_BEHIND = "#e3e6eb"
_FEW, _CROWDED, _NO_NUMBERS = 6, 15, 24
_SHOWN_SHARE = 0.005


def confusion_heatmap(scores: LabelScores) -> bytes:
    """Where the cells of each true label went; every row sums to 1, its cells are counted beside its name."""
    rows = [f"{shortened(score.label)}  ({score.support:,})" for score in scores.per_label]
    columns = [shortened(label) for label in scores.predicted_labels]
    share = scores.confusion / scores.confusion.sum(axis=1, keepdims=True)
    is_crowded = len(columns) > _NO_NUMBERS
    cell = 0.24 if is_crowded else 0.36 if len(columns) > _CROWDED else 0.5
    figure, axes = canvas(3.6 + cell * len(columns), 2.2 + cell * len(rows))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("predicted label")
    if len(rows) > _FEW:  # beside fewer there is no room for it
        axes.set_ylabel("true label (cells)")
    title(figure, f"Confusion of {scores.n:,} cells")
    for row, column in [] if is_crowded else zip(*np.nonzero(share >= _SHOWN_SHARE), strict=True):
        ink = "white" if share[row, column] > 0.5 else INK  # noqa: PLR2004 - the middle of the colour scale
        axes.text(column, row, f"{share[row, column]:.2f}", ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID if is_crowded else "white", linewidth=0.6 if is_crowded else 1.5)
    axes.tick_params(which="both", length=0)
    if is_crowded:
        bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, pad=0.02, label="share of the true label's cells")
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0)
    return png(figure)


def reliability_diagram(curves: Mapping[str, Reliability]) -> bytes:
    """Whether confidences mean what they say: on the diagonal they do. Dots grow with the share of cells in a bin.

    Args:
        curves: Name -> curve over the same cells, such as `share of the votes` and `calibrated`.
    """
    figure, axes = canvas(*SIDE_BY_SIDE)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    for (name, curve), colour in zip(curves.items(), STRONG, strict=False):
        x, y = [part.confidence for part in curve.bins], [part.accuracy for part in curve.bins]
        label = f"{name} (calibration error {curve.ece:.3f})"
        axes.plot(x, y, color=colour, linewidth=1.6, label=label)
        sizes = [8 + 200 * part.cells / curve.n_cells for part in curve.bins]
        axes.scatter(x, y, s=sizes, c=colour, linewidths=0, alpha=0.6)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("confidence, mean of the bin")
    axes.set_ylabel("accuracy: share of the bin that is right")
    title(figure, f"Reliability, {next(iter(curves.values())).n_cells:,} cells")
    legend_below(figure, axes)
    only_grid(axes, "both")
    return png(figure)


def coverage_accuracy(curves: Mapping[str, SelectiveAccuracy], threshold: tuple[float, float] | None = None) -> bytes:
    """What rejecting the least sure cells buys.

    Args:
        curves: Name -> curve over the same cells, such as `scGPT` and `PCA + kNN`.
        threshold: Share of the cells that the thresholds in use accept, and their accuracy, as a dot; or None.
    """
    figure, axes = canvas(*SIDE_BY_SIDE)
    for (name, curve), colour in zip(curves.items(), STRONG, strict=False):
        axes.plot(curve.share, curve.accuracy, color=colour, linewidth=1.8, label=f"{name} (area {curve.area:.3f})")
    if threshold is not None:
        axes.scatter(*threshold, s=46, c=INK, zorder=3, label=f"kept: {threshold[0]:.0%}, {threshold[1]:.3f} right")
    axes.set_xlim(0, 1.01)
    axes.set_xlabel("share of the cells that keep a label, the surest first")
    axes.set_ylabel("accuracy of these cells")
    cells = len(next(iter(curves.values())).accuracy)
    title(figure, f"Accuracy of the surest of {cells:,} cells")
    legend_below(figure, axes)
    only_grid(axes, "both")
    return png(figure)


def label_counts(labels: Sequence[str], counted: str) -> bytes:
    """Cells per label, the most frequent on top.

    Args:
        labels: One per cell.
        counted: What is counted, such as `Predicted cell_type`.
    """
    counts = _most_frequent(labels)
    figure, axes = canvas(5.2, 1.1 + 0.3 * len(counts))
    names, cells = [shortened(name) for name in counts], list(counts.values())
    bars = axes.barh(range(len(names)), cells, color=STRONG[0], height=0.72)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.bar_label(bars, [f"{n:,}  ({n / len(labels):.1%})" for n in cells], padding=4, color=FAINT, fontsize=8.5)
    axes.set_xlim(0, max(cells) * 1.22)
    axes.set_xlabel("cells")
    title(figure, f"{counted}, {len(labels):,} cells, {len(set(labels)):,} labels")
    axes.tick_params(axis="y", length=0)
    only_grid(axes, "x")
    return png(figure)


def umap_scatter(
    coordinates_N2: npt.NDArray[np.floating],
    labels: Sequence[str],
    meaning: str,
    behind_M2: npt.NDArray[np.floating] | None = None,
) -> bytes:
    """Cells in two dimensions, coloured by label; the numbers in the picture are those of the legend.

    Args:
        coordinates_N2: [n, 2].
        labels: One per cell, [n].
        meaning: Of the colours.
        behind_M2: Cells of the reference, drawn faintly behind, [m, 2].
    """
    figure, axes = canvas(8.6, 5.6)
    size = float(np.clip(12_000 / len(labels), 1.5, 22))
    for number, (name, colour, cells) in enumerate(_coloured(labels), start=1):
        x, y = coordinates_N2[cells].T
        axes.scatter(
            x, y, s=size, c=colour, linewidths=0, alpha=0.8, rasterized=True,
            zorder=1 if colour == GREY else 2, label=f"{number}  {shortened(name)} ({len(cells):,})",
        )  # fmt: skip
        if colour != GREY:
            _mark(axes, _central(coordinates_N2[cells]), str(number), colour)
    if behind_M2 is not None and len(behind_M2):
        axes.scatter(
            *behind_M2.T,
            s=3,
            c=_BEHIND,
            linewidths=0,
            rasterized=True,
            zorder=0,
            label=f"reference ({len(behind_M2):,})",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("UMAP 1", loc="left", color=FAINT)
    axes.set_ylabel("UMAP 2", loc="bottom", color=FAINT)
    title(figure, f"{meaning}, {len(labels):,} cells")
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, handletextpad=0.3, fontsize=9)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
        handle.set_alpha(1)
    return png(figure)


def _coloured(labels: Sequence[str]) -> Iterator[tuple[str, str, npt.NDArray[np.intp]]]:
    """Name, colour and cells of each label, the most frequent first; what has no colour left is `other`."""
    values = np.asarray(labels, object)
    shown = _most_frequent(labels)
    colours = colours_of(shown)
    for place, name in enumerate(shown):
        is_rest = place == MAX_LABELS - 1 and len(set(labels)) > MAX_LABELS
        cells = ~np.isin(values, [other for other in shown if other != name]) if is_rest else values == name
        yield name, GREY if is_rest else colours[name], np.flatnonzero(cells)


def _central(coordinates_N2: npt.NDArray[np.floating]) -> tuple[float, float]:
    """The cell nearest to the median, which itself may lie between two groups where there is nothing."""
    offsets_N2 = coordinates_N2 - np.median(coordinates_N2, axis=0)
    x, y = coordinates_N2[np.argmin((offsets_N2**2).sum(axis=1))]
    return float(x), float(y)


def _mark(axes: Any, place: tuple[float, float], text: str, colour: str) -> None:
    box = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": colour, "lw": 1.2, "alpha": 0.9}
    axes.annotate(text, place, ha="center", va="center", fontsize=8, weight="bold", color=INK, bbox=box, zorder=3)


def _most_frequent(labels: Sequence[str]) -> dict[str, int]:
    """Cells per label in falling order, ties by name; beyond MAX_LABELS the rest is summed as `other`."""
    ranked = sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) <= MAX_LABELS:
        return dict(ranked)
    kept, rest = ranked[: MAX_LABELS - 1], ranked[MAX_LABELS - 1 :]
    return {**dict(kept), f"other ({len(rest)} labels)": sum(cells for _, cells in rest)}
