"""Colours that tell labels apart on a white and on a dark background.

The first eight are those of Petroff 2021 (arXiv:2107.02270) without its greys, which here mean that nothing is known.
Each further one is, of all colours of middling lightness, the farthest from those before it (the idea of Glasbey et al.
2007, doi:10.1002/col.20327), by distance in OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab).
"""

from collections.abc import Iterable

from scgpt_ray.schema import NO_LABEL

CATEGORICAL = (
    "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#92dadd", "#066b15", "#125e89",
    "#fb8be2", "#07a24b", "#be5bb7", "#a0e164", "#7f3f62", "#f7b8b8", "#53817e", "#794d01", "#a498fe", "#7e7b02",
    "#3cc1a2", "#eb878b", "#7a6bab", "#7fbd3f", "#4346b4", "#40b7e4", "#d9516b", "#01edb5", "#dabafe", "#cfcf97",
    "#3e614f", "#af2e63", "#7a75e9", "#b184bf", "#79a66a", "#c7865c", "#e1cd20", "#99b9f9", "#825c59", "#8d8966",
    "#5c4c89", "#5ca5ac", "#892784", "#90382c", "#f88527", "#7887a6", "#9e5f87", "#2d74d9",
)  # fmt: skip
"""The most distinct first. More than these could not be distinguished."""

GREY = "#8f96a3"
"""Of cells that nothing is known about, and of labels for which there is no colour left."""

OUTCOMES = {"right": CATEGORICAL[0], "wrong": CATEGORICAL[5], "no truth": GREY}
"""Colours of predictions by whether they are right."""


def colours_of(names: Iterable[str], known: dict[str, str] | None = None) -> dict[str, str]:
    """A colour for each label, the most distinct for the first; GREY where the name says that there is no label.

    Args:
        names: Labels, the most important first.
        known: Colours that other labels already have; the new ones are added to it.

    Returns:
        `known` with the labels in it, or a new dict.
    """
    colours = {} if known is None else known
    for name in names:
        if name not in colours:
            taken = sum(colour != GREY for colour in colours.values())
            free = taken < len(CATEGORICAL) and name.strip().lower() not in NO_LABEL
            colours[name] = CATEGORICAL[taken] if free else GREY
    return colours
