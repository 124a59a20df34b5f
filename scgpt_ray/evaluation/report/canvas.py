"""An empty picture in the style of the reports, and its bytes when it is drawn.

Figures are made with matplotlib's objects alone, so that nothing here changes a session's pyplot.
"""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2430", "#6b7280", "#e5e7eb"
SIDE_BY_SIDE = (5.2, 3.9)
"""Inches of a picture that has half of a report's width."""

_DOTS_PER_INCH = 144
_FITS_HALF = 36  # letters


def canvas(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of this many inches and its axes."""
    figure, (axes,) = panels(width, height, 1)
    return figure, axes


def panels(width: float, height: float, n: int) -> tuple[Figure, list[Any]]:
    """A figure of n axes side by side, each of this many inches."""
    figure = Figure(figsize=(width * n, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    drawn = list(figure.subplots(1, n, squeeze=False)[0])
    for axes in drawn:
        axes.spines[:].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9, pad=6)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
    return figure, drawn


def title(figure: Figure, text: str) -> None:
    """Say what is drawn, at the left edge."""
    figure.suptitle(text, x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK)


def heading(axes: Any, text: str) -> None:
    """Say what is drawn in one of several panels."""
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK, pad=12)


def legend_below(figure: Figure, axes: Any) -> None:
    """Name what is drawn under the axes, where no line can run through it."""
    names = axes.get_legend_handles_labels()[1]
    columns = 2 if len(names) > 1 and max(map(len, names)) <= _FITS_HALF else 1
    figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5, labelcolor=INK)


def only_grid(axes: Any, direction: str) -> None:
    """Grid lines of one axis, x or y, or of both, behind the data."""
    axes.grid(axis=direction, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def shortened(name: str, longest: int = 34) -> str:
    """A name with its middle left out where it is long: names of labels differ at both ends."""
    if len(name) > longest:
        name = f"{name[: longest - longest // 2 - 1].rstrip()}…{name[-(longest // 2) :].lstrip()}"
    return name.replace("$", r"\$")  # a dollar would start matplotlib's mathematics


def png(figure: Figure) -> bytes:
    """The picture, the same bytes for the same content."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()
