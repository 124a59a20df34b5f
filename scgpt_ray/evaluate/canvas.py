"""An empty picture in the style of the reports, and its bytes when it is drawn.

Figures are made with matplotlib's objects alone, so that nothing here changes a session's pyplot.
"""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2430", "#6b7280", "#e5e7eb"
OTHER = "#c3c7ce"
# Ten colours that colour-blind readers tell apart (Petroff 2021, arXiv:2107.02270).
STRONG = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
_DOTS_PER_INCH = 144


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
        axes.tick_params(colors=INK, labelsize=9)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
    return figure, drawn


def heading(axes: Any, text: str) -> None:
    """Say what is drawn."""
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK, pad=12)


def only_grid(axes: Any, direction: str) -> None:
    """Grid lines of one axis, x or y, or of both, behind the data."""
    axes.grid(axis=direction, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def png(figure: Figure) -> bytes:
    """The picture, the same bytes for the same content."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()
