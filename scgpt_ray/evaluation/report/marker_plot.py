"""Dot plot of marker genes: their expression in the query cells of each predicted label."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from scgpt_ray.evaluation.markers import MarkedLabel
from scgpt_ray.evaluation.report.picture import BAD, FAINT, INK, styled
from scgpt_ray.evaluation.report.plots import SHARES, shortened

MOST_LABELS = 15
"""Labels in the picture."""

_GENES_PER_LABEL = 3
_COLUMN, _ROW, _LARGEST = 0.26, 0.34, 110  # inches, square points
_KEY = (0.25, 0.5, 1.0)


@styled
def marker_dots(labels: Sequence[MarkedLabel], column: str) -> Figure:
    """A row for each label, a column for each marker; a ring shows the reference cells of the marker's label.

    Args:
        labels: Those that have markers, at least one; more than MOST_LABELS are cut.
        column: The label column.
    """
    shown = labels[:MOST_LABELS]
    columns = [(row, gene) for row, marked in enumerate(shown) for gene in marked.genes[:_GENES_PER_LABEL]]
    figure = Figure(figsize=(4.2 + _COLUMN * len(columns), 2.0 + _ROW * len(shown)))
    axes = figure.subplots()
    dots = [(x, y, *marked.profile[gene.gene]) for x, (_, gene) in enumerate(columns) for y, marked in enumerate(shown)]
    x, y, detected, expression = zip(*dots, strict=True)
    sizes = [_LARGEST * share for share in detected]
    drawn = axes.scatter(x, y, s=sizes, c=expression, cmap=SHARES, vmin=0, linewidths=0, zorder=2)
    rings = [_LARGEST * gene.reference[0] for _, gene in columns]
    own = [row for row, _ in columns]
    axes.scatter(range(len(columns)), own, s=rings, c="none", edgecolors=INK, linewidths=0.9, zorder=3)
    axes.set_xticks(range(len(columns)), [gene.gene for _, gene in columns], rotation=90)
    names = [
        f"{'absent: ' if marked.is_absent else ''}{shortened(marked.label)} ({marked.cells:,})" for marked in shown
    ]
    axes.set_yticks(range(len(shown)), names)
    for tick, marked in zip(axes.get_yticklabels(), shown, strict=True):
        if marked.is_absent:
            tick.set(color=BAD, weight="bold")
    axes.set(xlim=(-0.7, len(columns) - 0.3), ylim=(len(shown) - 0.3, -0.7))
    axes.set_title(f"Markers in the query cells of each predicted {column}")
    bar = figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=16, pad=0.02, label="mean log1p(CP10k)")
    bar.outline.set_visible(False)
    for share in _KEY:
        axes.scatter([], [], s=_LARGEST * share, c=FAINT, linewidths=0, label=f"{share:.0%} of the cells")
    axes.scatter([], [], s=_LARGEST / 2, c="none", edgecolors=INK, label="reference")
    figure.legend(loc="outside lower left", ncols=len(_KEY) + 1)
    return figure
