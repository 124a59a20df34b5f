"""Dot plot of marker genes: their expression in the query cells of each predicted label, next to the reference's."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from scgpt_ray.evaluation.markers import MarkedLabel
from scgpt_ray.evaluation.report.palette import OUTCOMES
from scgpt_ray.evaluation.report.picture import FAINT, styled
from scgpt_ray.evaluation.report.plots import SHARES, shortened

MOST_LABELS = 15
"""Labels in the picture."""

_ROW, _LARGEST = 0.3, 110  # inches, square points
_KEY = (0.1, 0.5, 1.0)


@styled
def marker_dots(labels: Sequence[MarkedLabel]) -> Figure:
    """A row for each marker of each label: a dot for the query cells that got the label, a ring for the reference.

    Args:
        labels: Those that have markers, at least one; more than MOST_LABELS are cut.
    """
    shown = labels[:MOST_LABELS]
    rows = [(marked, gene) for marked in shown for gene in marked.genes]
    figure = Figure(figsize=(6.4, 1.5 + _ROW * len(rows)))
    axes = figure.subplots()
    places = np.arange(len(rows))
    for x, kind in enumerate(("query", "reference")):
        detected, expression = np.array([getattr(gene, kind) for _, gene in rows]).T
        dots = axes.scatter(
            np.full(len(rows), x),
            places,
            s=_LARGEST * detected,
            c=expression,
            cmap=SHARES,
            vmin=0,
            vmax=max(max(*gene.query[1:], *gene.reference[1:]) for _, gene in rows),
            edgecolors=FAINT,
            linewidths=0.6,
            zorder=2,
        )
    axes.set_xticks([0, 1], ["query cells", "reference"])
    axes.set_xlim(-0.6, 1.6)
    axes.xaxis.tick_top()
    axes.set_yticks(places, [gene.gene for _, gene in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    start = 0
    for marked in shown:
        middle = start + (len(marked.genes) - 1) / 2
        name = f"{shortened(marked.label)} ({marked.cells:,})" + ("\nmarkers absent" if marked.is_absent else "")
        colour = OUTCOMES["wrong"] if marked.is_absent else axes.xaxis.label.get_color()
        axes.text(1.75, middle, name, va="center", color=colour, weight="bold" if marked.is_absent else "normal")
        start += len(marked.genes)
        if start < len(rows):
            axes.axhline(start - 0.5, color=FAINT, linewidth=0.4, zorder=0)
    axes.grid(visible=False)
    figure.colorbar(dots, ax=axes, orientation="horizontal", fraction=0.06, pad=0.02, aspect=30, shrink=0.6).set_label(
        "mean log1p of counts scaled to 10,000"
    )
    for detected in _KEY:
        axes.scatter([], [], s=_LARGEST * detected, c="none", edgecolors=FAINT, label=f"{detected:.0%} of the cells")
    figure.legend(loc="outside lower left", ncols=len(_KEY))
    return figure
