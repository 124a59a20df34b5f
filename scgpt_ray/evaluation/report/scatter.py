"""A view of cells in a report: dots that can be zoomed, moved, pointed at, and coloured by any column.

The page holds coordinates and columns as base64, and the scripts in `web/` that draw them. Pictures stand in for it on
paper and where scripts are off.
"""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from scgpt_ray.evaluation.report.page import Picture, image, paragraph, section, web
from scgpt_ray.evaluation.report.palette import MAX_COLOURS, categorical, is_unknown, sequential

MAX_LABELS = 500
"""A text column with more values, or with one for every other cell, names cells: it is told, but not coloured by."""

NOTHING = "no value"

_FEW = 11
_QUANTILES = (0.01, 0.99)
_MANY = 100
_SCRIPTS = ("columns.js", "panel.js", "view.js")


@dataclass(frozen=True, eq=False)
class Column:
    """What is known of each cell.

    Attributes:
        name: Of the column.
        values: One per cell, in the order of the coordinates; None or NaN where there is none.
        family: Columns of one family share the colours of labels, such as predicted and true labels. None: its own.
        colours: Colours of some labels, where they have a meaning.
    """

    name: str
    values: Sequence[Any] | npt.NDArray[Any]
    family: str | None = None
    colours: Mapping[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Scatter:
    """Cells as dots, a panel for each set of coordinates.

    Attributes:
        panels: Name -> coordinates [n, 2] of the same cells.
        columns: What the dots can be coloured by; the first is, to begin with.
        pictures: What stands in on paper and without scripts.
        caption: What is drawn.
        n_front: Cells that are meant; those after them are drawn faintly behind. None: all are meant.
    """

    panels: Mapping[str, npt.NDArray[np.floating]]
    columns: Sequence[Column]
    pictures: Sequence[Picture]
    caption: str
    n_front: int | None = None

    def html(self) -> str:
        """The figure with its data and the script."""
        stills = "".join(image(picture) for picture in self.pictures)
        # No name of a label may end the element that holds it.
        data = json.dumps(self._packed(), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        script = "\n".join(web(name) for name in _SCRIPTS)
        return (
            f'<figure class="scatter"><div class="still">{stills}</div>'
            f"<figcaption>{escape(self.caption)}</figcaption>"
            f'<script type="application/json">{data}</script></figure>\n'
            f'<script type="module">\n{script}</script>'
        )

    def _packed(self) -> dict[str, Any]:
        n = len(next(iter(self.panels.values())))
        n_front = n if self.n_front is None else self.n_front
        # Dots hide one another: no label should always be on top.
        shuffle = np.random.default_rng(0).permutation
        order = np.concatenate([shuffle(n_front), n_front + shuffle(n - n_front)])
        families: dict[str, dict[str, str | None]] = {}
        columns = []
        for column in self.columns:
            assert len(column.values) == n, f"{column.name} has {len(column.values)} values for {n} cells"
            known = families.setdefault(column.family or f"column {column.name}", {})
            columns.append({"name": column.name} | _packed_column(column, order, n_front, known))
        panels = [{"name": name} | _places(places_N2[order]) for name, places_N2 in self.panels.items()]
        return {"n": n, "n_front": n_front, "panels": panels, "columns": columns, "scale": sequential()}


def cells_section(cells: Scatter | str) -> str:
    """The view under its heading, or why there is none."""
    return section("Cells", cells.html() if isinstance(cells, Scatter) else paragraph(cells))


def _places(coordinates_N2: npt.NDArray[np.floating]) -> dict[str, Any]:
    """Coordinates as whole numbers, the longer axis over all of uint16, y downwards."""
    offsets_N2 = np.stack([coordinates_N2[:, 0], -coordinates_N2[:, 1]], axis=1).astype(np.float64)
    offsets_N2 -= offsets_N2.min(axis=0)
    longest = float(offsets_N2.max())
    places_N2 = np.rint(offsets_N2 * (np.iinfo(np.uint16).max / longest if longest else 0.0))
    return {"extent": np.maximum(places_N2.max(axis=0), 1).tolist(), "places": _base64(places_N2, "<u2")}


def _packed_column(
    column: Column, order: npt.NDArray[np.integer], n_front: int, known: dict[str, str | None]
) -> dict[str, Any]:
    values = [None if value is None or value != value else value for value in np.asarray(column.values, object)[order]]
    present = [value for value in values if value is not None]
    distinct = len(set(present))
    is_number = all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in present)
    if is_number and distinct >= _FEW:
        return _numbers(np.array(values, np.float64), n_front)
    if distinct > min(MAX_LABELS, max(_FEW, len(present) / 2)):
        return {"kind": "texts", "texts": [None if value is None else str(value) for value in values]}
    return _labels([NOTHING if value is None else str(value) for value in values], n_front, column.colours or {}, known)


def _numbers(values_N: npt.NDArray[np.float64], n_front: int) -> dict[str, Any]:
    """Numbers with the ends of their scale; of many numbers a hundredth lies beyond either end."""
    meant = values_N[:n_front]
    finite = meant[np.isfinite(meant)] if np.isfinite(meant).any() else values_N[np.isfinite(values_N)]
    low, high = np.quantile(finite, _QUANTILES if len(finite) > _MANY else (0, 1))
    return {
        "kind": "numbers",
        "values": _base64(values_N, "<f4"),
        "low": float(low),
        "high": float(high),
        "below": bool(finite.min() < low),
        "above": bool(finite.max() > high),
        "missing": int(np.isnan(meant).sum()),
    }


def _labels(labels: list[str], n_front: int, fixed: Mapping[str, str], known: dict[str, str | None]) -> dict[str, Any]:
    """Labels, the most frequent of the meant cells first; those that the family lacks get its next colours."""
    counts = Counter(labels[:n_front])
    names = sorted(set(labels), key=lambda name: (-counts[name], name))
    for name in names:
        if name not in known:
            known[name] = fixed.get(name) or _next_colour(name, known)
    place = {name: number for number, name in enumerate(names)}
    return {
        "kind": "labels",
        "names": names,
        "colours": [known[name] for name in names],
        "counts": [counts[name] for name in names],
        "codes": _base64([place[label] for label in labels], "<u2"),
    }


def _next_colour(name: str, known: Mapping[str, str | None]) -> str | None:
    """None: the grey of the page."""
    taken = sum(colour is not None for colour in known.values())
    return None if name == NOTHING or is_unknown(name) or taken >= MAX_COLOURS else categorical()[taken]


def _base64(values: Any, dtype: str) -> str:
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()
