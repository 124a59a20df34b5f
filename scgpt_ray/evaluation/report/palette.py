"""Colours that tell labels apart on a white and on a dark ground, and a scale of colours for numbers.

The first eight are those of Petroff 2021 (arXiv:2107.02270) without its greys, which here mean that nothing is known.
Each further one is, of all colours of middling lightness, the farthest from those before it (the idea of Glasbey et al.
2007, doi:10.1002/col.20327), by distance in OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab).

Shape suffixes: C colours.
"""

from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

from scgpt_ray.schema import NO_LABEL

STRONG = ("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#92dadd")
"""The most distinct colours."""

GREY = "#a3a9b3"
"""Of cells that nothing is known about, and of labels for which there is no colour left."""

MAX_COLOURS = 48
"""More cannot be told apart."""

_GROUNDS = ("#ffffff", "#1c2027", GREY)
_LIGHTNESS, _CHROMA, _HUES = np.linspace(0.46, 0.84, 8), np.linspace(0.05, 0.17, 6), np.arange(0.0, 360.0, 6.0)
_SCALE_STEPS = 16
# Lightness, chroma and hue at the ends and in the middle: indigo, teal, yellow.
_SCALE = ((0.48, 0.66, 0.83), (0.16, 0.11, 0.16), (288.0, 200.0, 98.0))

# OKLab -> LMS (cubed afterwards) -> linear sRGB.
_LAB_TO_LMS = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@cache
def categorical() -> tuple[str, ...]:
    """MAX_COLOURS colours as #rrggbb, the most distinct first."""
    lightness, chroma, hue = (axis.ravel() for axis in np.meshgrid(_LIGHTNESS, _CHROMA, _HUES, indexing="ij"))
    candidates = _in_gamut(_lab(lightness, chroma, hue))
    lab_C3 = oklab(candidates)
    chosen = list(STRONG)
    nearest = _distance(lab_C3, oklab([*_GROUNDS, *STRONG])).min(axis=1)
    while len(chosen) < MAX_COLOURS:
        farthest = int(nearest.argmax())
        chosen.append(candidates[farthest])
        nearest = np.minimum(nearest, _distance(lab_C3, lab_C3[farthest : farthest + 1])[:, 0])
    return tuple(chosen)


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each label, the most distinct for the first; GREY where the name says that there is no label."""
    left = iter(categorical())
    return {name: GREY if is_unknown(name) else next(left, GREY) for name in names}


def is_unknown(name: str) -> bool:
    """Whether a label says that there is none."""
    return name.strip().lower() in NO_LABEL


@cache
def sequential() -> tuple[str, ...]:
    """Colours from low to high, evenly lighter."""
    steps = np.linspace(0, 1, _SCALE_STEPS)
    lightness, chroma, hue = (np.interp(steps, (0, 0.5, 1), ends) for ends in _SCALE)
    return tuple(_hex(np.clip(_rgb(_lab(lightness, chroma, hue)), 0, 1)))


def oklab(colours: list[str]) -> npt.NDArray[np.float64]:
    """OKLab coordinates of #rrggbb colours, float64 [C, 3]."""
    bytes_C3 = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in colours])
    encoded = bytes_C3 / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)  # noqa: PLR2004 - sRGB
    lms = np.cbrt(linear @ np.linalg.inv(_LMS_TO_RGB).T)
    return np.asarray(lms @ np.linalg.inv(_LAB_TO_LMS).T)


def _lab(
    lightness: npt.NDArray[np.float64], chroma: npt.NDArray[np.float64], hue: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    angle = np.radians(hue)
    return np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)


def _rgb(lab_C3: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Encoded sRGB; outside of 0 to 1 where a screen cannot show it."""
    linear = (lab_C3 @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T
    curved = 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, curved))  # noqa: PLR2004 - sRGB


def _in_gamut(lab_C3: npt.NDArray[np.float64]) -> list[str]:
    rgb_C3 = _rgb(lab_C3)
    return _hex(rgb_C3[((rgb_C3 >= 0) & (rgb_C3 <= 1)).all(axis=1)])


def _hex(rgb_C3: npt.NDArray[np.float64]) -> list[str]:
    return ["#" + "".join(f"{channel:02x}" for channel in row) for row in np.rint(rgb_C3 * 255).astype(int)]


def _distance(one_C3: npt.NDArray[np.float64], other_C3: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.norm(one_C3[:, None] - other_C3[None], axis=2))
