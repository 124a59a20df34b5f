"""The pictures of reports and runs, each a function that returns a matplotlib figure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from scgpt_ray.evaluation.labels.metrics import LabelScores
from scgpt_ray.evaluation.labels.selective_accuracy import SelectiveAccuracy
from scgpt_ray.evaluation.report.palette import CATEGORICAL, GREY, OUTCOMES, colours_of
from scgpt_ray.evaluation.report.picture import FAINT, GRID, INK, PAPER, styled
from scgpt_ray.index.recall import Point
from scgpt_ray.index.searcher import SearchParams
from scgpt_ray.mapping.calibrator import Reliability

_MOST_POINTS = 1000
"""Points of a curve; more cannot be seen, and each is text in the report."""
MAX_LABELS = 20
"""Labels in a picture; rarer ones are drawn together as `other`."""

MAX_GROUPS = 8
"""Groups of cells in a histogram, likewise."""

_SIDE_BY_SIDE = (5.2, 3.9)  # inches of a picture that has half of a report's width
_DASHED = (0, (4, 3))
SHARES = LinearSegmentedColormap.from_list("shares", [(0.19, 0.51, 0.74, alpha) for alpha in (0.0, 1.0)])
_MANY_COLUMNS, _NO_NUMBERS, _SHOWN_SHARE = 15, 24, 0.005
_FITS_HALF, _FITS_AXIS = 22, 34  # letters


@styled
def confusion_heatmap(scores: LabelScores) -> Figure:
    """Where the cells of each true label went; every row sums to 1, its cells are counted after its name."""
    share = scores.confusion / scores.confusion.sum(axis=1, keepdims=True)
    n_rows, n_columns = share.shape
    is_crowded = n_columns > _NO_NUMBERS
    inches = 0.24 if is_crowded else 0.36 if n_columns > _MANY_COLUMNS else 0.5
    figure, axes = _axes(3.6 + inches * n_columns, 2.2 + inches * n_rows)
    # The page draws a pixel per cell of the matrix as a square; otherwise 100 labels take 0.5 GB for a large image.
    image = axes.imshow(share, cmap=SHARES, vmin=0, vmax=1, aspect="auto", interpolation="none")
    names = [shortened(label) for label in scores.predicted_labels]
    axes.set_xticks(range(n_columns), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n_rows), [f"{shortened(score.label)}  ({score.support:,})" for score in scores.per_label])
    axes.set_title(f"Confusion of {scores.n:,} cells: true label by predicted label")
    for row, column in [] if is_crowded else zip(*np.nonzero(share >= _SHOWN_SHARE), strict=True):
        ink = "white" if share[row, column] > 0.5 else INK  # noqa: PLR2004 - the middle of the colour scale
        axes.text(column, row, f"{share[row, column]:.2f}", ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_xticks(np.arange(n_columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n_rows + 1) - 0.5, minor=True)
    axes.grid(visible=False, which="major")
    axes.grid(which="minor", color=GRID, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    if is_crowded:
        bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, pad=0.02, label="share of the true label's cells")
        bar.outline.set_visible(False)
    return figure


@styled
def reliability_diagram(curves: Mapping[str, Reliability]) -> Figure:
    """Whether confidences mean what they say: on the diagonal they do. Dots grow with the share of cells in a bin.

    Args:
        curves: Name -> curve over the same cells, such as `share of the votes` and `calibrated`.
    """
    figure, axes = _axes(*_SIDE_BY_SIDE)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=_DASHED)
    for (name, curve), colour in zip(curves.items(), CATEGORICAL, strict=False):
        x, y = [part.confidence for part in curve.bins], [part.accuracy for part in curve.bins]
        axes.plot(x, y, color=colour, linewidth=1.6, label=f"{name} (calibration error {curve.ece:.3f})")
        sizes = [8 + 200 * part.cells / curve.n_cells for part in curve.bins]
        axes.scatter(x, y, s=sizes, c=colour, linewidths=0, alpha=0.6)
    axes.set(xlabel="confidence, mean of the bin", ylabel="accuracy: share of the bin that is right")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set_title(f"Reliability, {next(iter(curves.values())).n_cells:,} cells")
    return _with_legend(figure)


@styled
def coverage_accuracy(curves: Mapping[str, SelectiveAccuracy], threshold: tuple[float, float] | None = None) -> Figure:
    """Accuracy of the cells that are left where the least confident are rejected.

    Args:
        curves: Name -> curve over the same cells, such as `scGPT` and `PCA + kNN`.
        threshold: Coverage and accuracy of the thresholds in use, marked by a dot; None for no dot.
    """
    figure, axes = _axes(*_SIDE_BY_SIDE)
    for name, curve in curves.items():
        drawn = np.linspace(0, len(curve.share) - 1, min(len(curve.share), _MOST_POINTS)).round().astype(int)
        axes.plot(curve.share[drawn], curve.accuracy[drawn], linewidth=1.8, label=f"{name} (area {curve.area:.3f})")
    if threshold is not None:
        axes.scatter(*threshold, s=46, c=INK, zorder=3, label=f"kept: {threshold[0]:.0%}, {threshold[1]:.3f} right")
    axes.set(xlabel="share of the cells that keep a label, most confident first", ylabel="accuracy of these cells")
    axes.set_xlim(0, 1.01)
    axes.set_title(f"Accuracy of the most confident of {len(next(iter(curves.values())).accuracy):,} cells")
    return _with_legend(figure)


@styled
def label_counts(cells: Mapping[str, int], counted: str) -> Figure:
    """Cells per label, the most frequent on top.

    Args:
        cells: Label -> cells.
        counted: What is counted, such as `Predicted cell_type`.
    """
    counts, total = _most_frequent(cells), sum(cells.values())
    figure, axes = _axes(5.2, 1.1 + 0.3 * len(counts))
    bars = axes.barh(range(len(counts)), list(counts.values()), height=0.72)
    axes.set_yticks(range(len(counts)), [shortened(name) for name in counts])
    axes.invert_yaxis()
    axes.bar_label(bars, [f"{n:,}  ({n / total:.1%})" for n in counts.values()], padding=4, color=FAINT)
    axes.set_xlim(0, max(counts.values()) * 1.25)
    axes.set_xlabel("cells")
    axes.grid(visible=False, axis="y")
    axes.set_title(f"{counted}, {total:,} cells, {len(cells):,} labels")
    return figure


@styled
def histogram(groups: Mapping[str, npt.NDArray[Any]], title: str, meaning: str, **bins: Any) -> Figure:
    """Groups of cells on top of one another.

    Args:
        groups: Name -> a value of each cell, such as the confidence of `right` and of `wrong` predictions; not all
            empty. The smallest of more than MAX_GROUPS are drawn together.
        title: What is drawn.
        meaning: Of the values.
        bins: Options of `Axes.hist`; 30 bins over all values unless given.
    """
    groups = _largest(groups) if len(groups) > MAX_GROUPS else groups
    colours = colours_of(groups) | OUTCOMES
    figure, axes = _axes(*_SIDE_BY_SIDE)
    axes.hist(
        list(groups.values()),
        **{"bins": 30} | bins,
        stacked=True,
        color=[GREY if name.startswith("other (") else colours[name] for name in groups],
        label=[f"{shortened(name, _FITS_HALF)} ({len(values):,}, {_mean(values)})" for name, values in groups.items()],
    )
    axes.set(xlabel=meaning, ylabel="cells")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,.6g}"))
    axes.grid(visible=False, axis="x")
    axes.set_title(f"{title}, {sum(map(len, groups.values())):,} cells")
    return _with_legend(figure)


@styled
def umap_scatter(
    coordinates_N2: npt.NDArray[np.floating],
    labels: Sequence[str],
    meaning: str,
    behind_M2: npt.NDArray[np.floating] | None = None,
    *,
    half: bool = False,
) -> Figure:
    """Cells in two dimensions, coloured by label; the numbers in the picture are those of the legend.

    Args:
        coordinates_N2: [n, 2].
        labels: One per cell, [n].
        meaning: Of the colours.
        behind_M2: Cells of the reference, drawn faintly behind, [m, 2].
        half: For half of a report's width, with the legend below.
    """
    shown = list(_coloured(labels))
    figure, axes = _axes(_SIDE_BY_SIDE[0], 4.4 + 0.1 * len(shown)) if half else _axes(8.6, 5.6)
    dots: dict[str, Any] = {"linewidths": 0, "rasterized": True}
    size = float(np.clip(12_000 / len(labels), 1.5, 22))
    for number, (name, colour, cells) in enumerate(shown, start=1):
        label = f"{number}  {shortened(name, _FITS_HALF if half else _FITS_AXIS)} ({len(cells):,})"
        order = 1 if colour == GREY else 2
        axes.scatter(*coordinates_N2[cells].T, s=size, c=colour, alpha=0.8, zorder=order, label=label, **dots)
        if colour != GREY:
            box = {"boxstyle": "circle,pad=0.25", "fc": PAPER, "ec": colour, "lw": 1.2, "alpha": 0.9}
            place = _central(coordinates_N2[cells])
            axes.annotate(str(number), place, ha="center", va="center", fontsize=8, weight="bold", bbox=box, zorder=3)
    if behind_M2 is not None and len(behind_M2):
        axes.scatter(*behind_M2.T, s=3, c=GREY, alpha=0.3, zorder=0, label=f"reference ({len(behind_M2):,})", **dots)
    axes.set(xticks=[], yticks=[])
    axes.spines.bottom.set_visible(False)
    axes.set_xlabel("UMAP 1", loc="left", color=FAINT)
    axes.set_ylabel("UMAP 2", loc="bottom", color=FAINT)
    axes.set_title(f"{meaning}, {len(labels):,} cells")
    where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    if half:
        where = {"loc": "upper left", "bbox_to_anchor": (0, -0.06), "ncols": 2}
    legend = axes.legend(**where, handletextpad=0.3)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
        handle.set_alpha(1)
    return figure


@styled
def recall_curve(curve: Sequence[Point], chosen: SearchParams, target: float) -> Figure:
    """Recall@10 over the lists that are searched, a line for each depth of re-ranking.

    Args:
        curve: The parameters that were tried.
        chosen: The ones in use, among them.
        target: The recall that was asked for.
    """
    figure, axes = _axes(*_SIDE_BY_SIDE)
    axes.axhline(target, color=FAINT, linewidth=1, linestyle=_DASHED, label=f"target: {target:.3f}")
    for rerank in sorted({point.rerank for point in curve}):
        line = sorted((point.nprobe, point.recall_at_10) for point in curve if point.rerank == rerank)
        axes.plot(*zip(*line, strict=True), linewidth=1.6, marker="o", markersize=3.5, label=f"rerank {rerank}")
    found = next(point.recall_at_10 for point in curve if point.params == chosen)
    axes.scatter(chosen.nprobe, found, s=70, facecolors="none", edgecolors=INK, zorder=3, label=f"in use: {found:.4f}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="nprobe: inverted lists searched", ylabel="recall@10")
    axes.set_title("Neighbours found by the index")
    return _with_legend(figure)


def shortened(name: str, longest: int = _FITS_AXIS) -> str:
    """A name with its middle left out where it is long: names of labels differ at both ends."""
    if len(name) <= longest:
        return name
    return f"{name[: longest - longest // 2 - 1].rstrip()}…{name[-(longest // 2) :].lstrip()}"


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _with_legend(figure: Figure) -> Figure:
    """Name what is drawn under the axes, where no line can run through it."""
    names = figure.axes[0].get_legend_handles_labels()[1]
    fits = all(len(name) <= _FITS_HALF + 14 for name in names)  # with counts and a mean
    figure.legend(loc="outside lower left", ncols=min(len(names), 2) if fits else 1)
    return figure


def _mean(values: npt.NDArray[Any]) -> str:
    mean = float(np.mean(values))
    return f"mean {mean:,.0f}" if mean >= 100 else f"mean {mean:.2f}"  # noqa: PLR2004 - counts, or shares and distances


def _largest(groups: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    kept, rest = ranked[: MAX_GROUPS - 1], ranked[MAX_GROUPS - 1 :]
    return {**dict(kept), f"other ({len(rest)})": np.concatenate([values for _, values in rest])}


def _coloured(labels: Sequence[str]) -> Iterator[tuple[str, str, npt.NDArray[np.intp]]]:
    """Name, colour and cells of each label, the most frequent first; those beyond MAX_LABELS are `other`."""
    values, known = np.asarray(labels, object), set(labels)
    shown = _most_frequent(Counter(labels))
    for name, colour in colours_of(shown).items():
        if name in known:
            yield name, colour, np.flatnonzero(values == name)
        else:
            yield name, GREY, np.flatnonzero(~np.isin(values, list(shown)))


def _central(coordinates_N2: npt.NDArray[np.floating]) -> tuple[float, float]:
    """The cell nearest to the median, which itself may lie between two groups where there is nothing."""
    offsets_N2 = coordinates_N2 - np.median(coordinates_N2, axis=0)
    x, y = coordinates_N2[np.argmin((offsets_N2**2).sum(axis=1))]
    return float(x), float(y)


def _most_frequent(cells: Mapping[str, int]) -> dict[str, int]:
    """Cells per label in falling order, ties by name; beyond MAX_LABELS the rest is summed as `other`."""
    ranked = sorted(cells.items(), key=lambda entry: (-entry[1], entry[0]))
    if len(ranked) <= MAX_LABELS:
        return dict(ranked)
    kept, rest = ranked[: MAX_LABELS - 1], ranked[MAX_LABELS - 1 :]
    return {**dict(kept), f"other ({len(rest)} labels)": sum(cells for _, cells in rest)}
