"""Pictures of a report: matplotlib figures in one style, as SVG in the page and as PNG files.

Figures are made without pyplot, so that nothing here changes a session's own plots.
"""

import io
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from scgpt_ray.evaluation.report.palette import CATEGORICAL

INK, FAINT, GRID, PAPER, BAD = "#1f2430", "#6b7280", "#e5e7eb", "#fefefe", "#b3261e"

_IN_PAGE = {INK: "currentColor", FAINT: "var(--faint)", GRID: "var(--line)", PAPER: "var(--card)", BAD: "var(--bad)"}
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": f"cycler('color', {list(CATEGORICAL)})",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": PAPER,
    "font.size": 9,
    "grid.color": GRID,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # names of labels may have dollars
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}
_DOTS_PER_INCH = 144
_WIDE_FROM = 6  # inches

styled = rc_context(_STYLE)
"""Decorator of a function that draws a figure: in the style of the reports."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure and the sentence under it."""

    figure: Figure
    caption: str

    @property
    def is_wide(self) -> bool:
        """Whether it needs the width of the page."""
        return bool(self.figure.get_figwidth() > _WIDE_FROM)

    def svg(self) -> str:
        """The `<svg>` element, the same text for the same content, in the colours and the font of the page."""
        content = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        # Ids must differ between the pictures of a page: a hidden one would hide what refers to it in another.
        with rc_context(_STYLE | {"svg.fonttype": "none", "svg.hashsalt": self.caption}):
            _save(FigureCanvasSVG(self.figure), content, format="svg", transparent=True, metadata=nothing)
        svg = content.getvalue()
        svg = svg[svg.index("<svg") :]
        for colour, own in _IN_PAGE.items():
            svg = svg.replace(colour, own)
        return svg


@styled
def png(figure: Figure) -> bytes:
    """A figure on white as a PNG file, the same bytes for the same content."""
    content = io.BytesIO()
    _save(FigureCanvasAgg(figure), content, format="png", metadata={"Software": None})
    return content.getvalue()


def _save(canvas: FigureCanvasSVG | FigureCanvasAgg, content: io.IOBase, **options: Any) -> None:
    """Save a figure that is laid out before: `savefig` draws it once more for that, and takes a third longer."""
    figure = canvas.figure
    engine, figure.dpi = figure.get_layout_engine(), _DOTS_PER_INCH
    assert engine is not None, "of the style"
    engine.execute(figure)
    with rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
        figure.savefig(content, dpi=_DOTS_PER_INCH, **options)
    figure.set_layout_engine(engine)
