"""The pictures of runs that compute embeddings and networks, quick to import."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from scgpt_ray.evaluation.report.palette import CATEGORICAL
from scgpt_ray.evaluation.report.picture import INK, styled

_HALF = (5.2, 3.9)  # inches of a picture that has half of a report's width
_MOST_TICKS = 9
_MOST_POINTS = 500
"""Points of a curve; steps that share one are drawn as their mean and range."""


@styled
def genes_per_cell(cells: Sequence[int], bins: Sequence[int], max_length: float) -> Figure:
    """Cells by number of genes, on a logarithmic axis.

    Args:
        cells: Number in each bin, not all 0.
        bins: Least number of genes of each; the first is 0.
        max_length: Most tokens of a cell, of which the first is <cls>.
    """
    figure = Figure(figsize=_HALF)
    axes = figure.subplots()
    shown = np.flatnonzero(cells)
    first, last = max(1, shown[0]), max(1, shown[-1])
    edges = [*bins[first : last + 1], 2 * bins[last] if last + 1 == len(bins) else bins[last + 1]]
    axes.stairs(cells[first : last + 1], edges, fill=True, color=CATEGORICAL[0])
    if edges[0] < max_length <= edges[-1]:
        axes.axvline(max_length, color=INK, linewidth=1)
        axes.annotate(
            f" cut from {max_length:,}", (max_length, 0.98), xycoords=("data", "axes fraction"), va="top", color=INK
        )
    axes.set_xscale("log")
    axes.set_xticks(edges[:: 1 + len(edges) // _MOST_TICKS])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.12)
    axes.set(xlabel="genes of the vocabulary with counts", ylabel="cells")
    axes.grid(visible=False, axis="x")
    axes.set_title(f"Genes per cell, {sum(cells):,} cells")
    return figure


@styled
def training_curve(validations: Sequence[Mapping[str, float]], names: Sequence[str], chosen: int) -> Figure:
    """The validations of a training run, a panel for each metric.

    Args:
        validations: One mapping per saved checkpoint, with `step`; the same names in all.
        names: The metrics to draw.
        chosen: The step of the checkpoint, marked by a ring.
    """
    figure = Figure(figsize=(5.2 if len(names) == 1 else 3.2 * len(names), 2.8))
    steps = [validation["step"] for validation in validations]
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = [validation[name] for validation in validations]
        panel.plot(steps, values, marker="o", markersize=3)
        panel.scatter(chosen, values[steps.index(chosen)], s=70, facecolors="none", edgecolors=INK, zorder=3)
        panel.set(title=name, xlabel="step")
    return figure


@styled
def loss_curve(losses: Sequence[float], validations: Sequence[Mapping[str, float]], chosen: int) -> Figure:
    """The training loss of every step, with the loss of validations.

    Args:
        losses: Of every step, from the first.
        validations: One mapping per saved checkpoint, with `step` and `loss`.
        chosen: The step of the checkpoint, marked by a ring.
    """
    figure = Figure(figsize=(5.2, 2.8))
    axes = figure.subplots()
    bounds = np.linspace(0, len(losses), min(len(losses), _MOST_POINTS) + 1).astype(np.int64)
    values, starts, sizes = np.asarray(losses), bounds[:-1], np.diff(bounds)
    middle = starts + (1 + sizes) / 2
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    axes.fill_between(middle, low, high, color=CATEGORICAL[0], alpha=0.25, linewidth=0)
    axes.plot(middle, np.add.reduceat(values, starts) / sizes, color=CATEGORICAL[0], linewidth=1, label="training")
    steps, seen = ([each[name] for each in validations] for name in ("step", "loss"))
    axes.plot(steps, seen, color=CATEGORICAL[1], marker="o", markersize=3, label="validation", zorder=2.5)
    axes.scatter(chosen, seen[steps.index(chosen)], s=70, facecolors="none", edgecolors=INK, zorder=3)
    axes.set(title="loss", xlabel="step")
    axes.legend()
    return figure
