"""Cells as dots that can be zoomed, moved, pointed at, and coloured by any column.

The page holds coordinates and columns once, in binary; Bokeh draws them, and `web/cells.js` connects its plots with the
page's legend. Pictures replace the plots on paper and where scripts are off.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scgpt_ray.errors import optional
from scgpt_ray.evaluation.report.palette import GREY, colours_of
from scgpt_ray.evaluation.report.picture import Picture

MAX_NAMES = 500
"""A text column with more values, or with one for every other cell, names cells: it is shown, but not coloured by."""

NOTHING = "no value"

_FEW = 11
_QUANTILES = (0.01, 0.99)
_MANY = 100
_FLOAT32_INTEGERS = 2**24
_BEHIND_ALPHA = 0.35


@dataclass(frozen=True, eq=False)
class Column:
    """What is known of each cell.

    Attributes:
        name: Of the column.
        values: One per cell, in the order of the coordinates; None or NaN if missing. Numbers get a
            continuous scale, everything else a colour for each value.
        family: Columns of one family share the colours of labels, such as predicted and true labels. None: its own.
        colours: Colours of some labels, where they have a meaning.
    """

    name: str
    values: Sequence[Any] | npt.NDArray[Any]
    family: str | None = None
    colours: Mapping[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Legend:
    """How the values of a column are drawn.

    Attributes:
        name: Of the column.
        palette: Colours from low to high; empty where cells are not coloured by it.
        low: Of the values that the palette covers.
        high: Likewise.
        labels: Label -> cells, the most frequent first, in the order of the palette; None for numbers.
        ends: Texts at the ends of a scale of numbers.
        n_missing: Cells without a number.
    """

    name: str
    palette: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    labels: Mapping[str, int] | None = None
    ends: tuple[str, str] = ("", "")
    n_missing: int = 0


@dataclass(frozen=True, eq=False)
class Scatter:
    """Cells as dots, a panel for each set of coordinates.

    Attributes:
        panels: Name -> coordinates [n, 2] of the same cells.
        columns: What the dots can be coloured by; the first is, to begin with.
        pictures: Replace the plots on paper and without scripts.
        caption: What is drawn.
        n_front: Cells that are meant; those after them are drawn faintly behind. None: all are meant.
    """

    panels: Mapping[str, npt.NDArray[np.floating]]
    columns: Sequence[Column]
    pictures: Sequence[Picture]
    caption: str
    n_front: int | None = None

    def drawn(self) -> dict[str, Any]:
        """What the page needs: `script` of Bokeh, its `plots` as JSON, and the `legends` of the columns."""
        from scgpt_ray.evaluation.report import bokeh_plots  # bokeh is optional, and slow to import

        n = len(next(iter(self.panels.values())))
        n_front = n if self.n_front is None else self.n_front
        # Those behind first. Dots hide one another: no label should always be on top.
        shuffled = np.random.default_rng(0).permutation
        order = np.concatenate([n_front + shuffled(n - n_front), shuffled(n_front)])
        data: dict[str, Any] = {"alpha": np.where(order < n_front, 1, _BEHIND_ALPHA).astype(np.float32)}
        for place, points_N2 in enumerate(self.panels.values()):
            data[f"x{place}"], data[f"y{place}"] = points_N2[order].astype(np.float32).T.copy()
        families: dict[str, dict[str, str]] = {}
        legends = []
        for place, column in enumerate(self.columns):
            assert len(column.values) == n, f"{column.name} has {len(column.values)} values for {n} cells"
            family = column.family or f"column {column.name}"
            known = families.setdefault(family, {NOTHING: GREY, **(column.colours or {})})
            values = pd.Series(list(column.values)).iloc[order]  # of an array of objects no type would be inferred
            if _is_number(values):
                data[f"c{place}"], legend = _numbers(column.name, values, order < n_front, bokeh_plots.SCALE)
            else:
                data[f"c{place}"], legend = _labels(column.name, values, order < n_front, known)
            legends.append(legend)
        titles = list(self.panels) if len(self.panels) > 1 else [""]
        shown = [(legend.name, None if legend.labels is None else list(legend.labels)) for legend in legends]
        plots = bokeh_plots.plots(titles, data, shown, n - n_front)
        return {"script": bokeh_plots.script(), "plots": plots, "legends": legends}


def require_bokeh() -> None:
    """Check that cells can be drawn.

    Raises:
        ConfigError: If bokeh is not installed.
    """
    with optional("a plot of cells", "bokeh"):
        import_module("bokeh")


def _is_number(values: "pd.Series[Any]") -> bool:
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return is_number and bool(np.isfinite(values.to_numpy(np.float64)).any())


def _numbers(
    name: str, values: "pd.Series[Any]", is_front: npt.NDArray[np.bool_], scale: tuple[str, ...]
) -> tuple[npt.NDArray[np.floating], Legend]:
    """Numbers, and the ends of their scale; of many numbers a hundredth lies beyond either end."""
    values_N = values.to_numpy(np.float64)
    is_finite = np.isfinite(values_N)
    finite = values_N[is_finite & is_front] if (is_finite & is_front).any() else values_N[is_finite]
    low, high = np.quantile(finite, _QUANTILES if len(finite) > _MANY else (0, 1)).tolist()
    below, above = "≤ " if finite.min() < low else "", "≥ " if finite.max() > high else ""
    kind = np.float32 if np.abs(finite).max() < _FLOAT32_INTEGERS else np.float64
    missing = int(np.isnan(values_N[is_front]).sum())
    ends = (f"{below}{low:,.4g}", f"{above}{high:,.4g}")
    return values_N.astype(kind), Legend(name, scale, low, high, ends=ends, n_missing=missing)


def _labels(
    name: str, values: "pd.Series[Any]", is_front: npt.NDArray[np.bool_], known: dict[str, str]
) -> tuple[Any, Legend]:
    """Numbers of labels, and the labels, those of the cells in front first; or texts, where they name cells."""
    texts = values.astype(str).where(values.notna(), NOTHING).to_numpy(object)
    if len(set(texts)) > min(MAX_NAMES, max(_FEW, values.notna().sum() / 2)):
        return texts.tolist(), Legend(name, labels={})
    counts = Counter(texts[is_front])
    labels = {label: counts[label] for label in sorted(set(texts), key=lambda label: (-counts[label], label))}
    colours = colours_of(labels, known)
    codes = pd.Categorical(texts, categories=list(labels)).codes
    return codes, Legend(name, tuple(colours[label] for label in labels), -0.5, len(labels) - 0.5, labels)
