"""Plots of cells by Bokeh, which zooms, moves and points in the page. Importing this needs bokeh and takes a second."""

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.embed import json_item
from bokeh.layouts import row
from bokeh.models import ColumnDataSource, CustomJS, CustomJSHover, HoverTool, LinearColorMapper
from bokeh.models.dom import Div, Span, ValueRef
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from bokeh.resources import Resources

from scgpt_ray.evaluation.report.palette import GREY

SCALE = tuple(Viridis256[60::8])
"""Colours of numbers from low to high, without those too dark for a dark page."""

_FADED_ALPHA = 0.1
_NUMBER = (
    "return Number.isNaN(value) ? 'no value' : "
    "value.toLocaleString('en-US', {maximumSignificantDigits: Number.isInteger(value) ? 21 : 4})"
)
# Of the cells under the pointer the nearest, those in front before those behind.
_NEAREST = """
export default ({n_behind}, _tool, {vars: {index, indices, glyph_view, sx, sy}}) => {
  const distance = (cell) => (cell < n_behind) * 1e6 + Math.hypot(glyph_view.sx[cell] - sx, glyph_view.sy[cell] - sy)
  return indices.every((other) => distance(index) <= distance(other))
}"""


def script() -> str:
    """The script of Bokeh, whole."""
    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw)


def plots(
    titles: Sequence[str], data: Mapping[str, Any], columns: Sequence[tuple[str, list[str] | None]], n_behind: int
) -> dict[str, Any]:
    """Draw cells, a panel for each set of coordinates.

    Args:
        titles: Of the panels.
        data: Columns of values, one per cell, with `x0` and `y0` of the first panel, `x1` and `y1` of the second, ...;
            `alpha`, the opacity; and `c0`, `c1`, ..., what is shown of the cell under the pointer.
        columns: Name of `c0`, of `c1`, ..., each with the labels that its values number; none of them for texts, None
            for numbers.
        n_behind: The first cells, which are pointed at only where no other is near.

    Returns:
        What `Bokeh.embed.embed_item` draws. `web/cells.js` sets the colours: the source `cells` has a column `colour`,
        which the mapper `colours` turns into a palette's.
    """
    source = ColumnDataSource({**data, "colour": data["alpha"]}, name="cells")
    colour = {"field": "colour", "transform": LinearColorMapper(name="colours", palette=[GREY], nan_color=GREY)}
    panels = []
    for place, title in enumerate(titles):
        x, y = (data[f"{axis}{place}"] for axis in "xy")
        plot = figure(
            title=title,
            tools=["pan", "wheel_zoom", "zoom_in", "zoom_out", "reset", "save", _hover(columns, n_behind)],
            active_scroll="wheel_zoom",
            match_aspect=True,
            aspect_ratio=1,
            sizing_mode="stretch_width",
            min_width=260,
            background_fill_color=None,
            border_fill_color=None,
            outline_line_color=None,
            tags=[float(end) for end in (x.min(), x.max(), y.min(), y.max())],
            styles={"flex": "1 1 260px"},
        )
        plot.axis.visible = plot.grid.visible = False
        plot.title.text_font = "system-ui"
        plot.toolbar.logo = None
        plot.toolbar.stylesheets = [".bk-divider { opacity: 0.3; }"]
        plot.scatter(
            f"x{place}",
            f"y{place}",
            source=source,
            line_color=None,
            fill_color=colour,
            fill_alpha="alpha",
            selection_fill_alpha="alpha",
            nonselection_fill_alpha=_FADED_ALPHA,
        )
        panels.append(plot)
    return dict(json_item(row(panels, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})))


def _hover(columns: Sequence[tuple[str, list[str] | None]], n_behind: int) -> HoverTool:
    """What is shown of the cell under the pointer: all its values."""
    rows = []
    for place, (name, labels) in enumerate(columns):
        value = ValueRef(field=f"c{place}")
        if labels is None:
            value.update(format="custom", formatter=CustomJSHover(code=_NUMBER))
        elif labels:
            value.update(format="custom", formatter=CustomJSHover(args={"labels": labels}, code="return labels[value]"))
        rows += [Span(children=[name], style={"color": "var(--faint)"}), Span(children=[value])]
    return HoverTool(
        tooltips=Div(
            children=[*rows], style={"display": "grid", "grid-template-columns": "auto auto", "gap": "1px 12px"}
        ),
        filters={"@alpha": CustomJS(args={"n_behind": n_behind}, code=_NEAREST)},
        limit=1,
        visible=False,
    )
