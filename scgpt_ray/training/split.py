"""The split into training and validation cells: by a filter, by whole groups such as donors, or a random share.

The random share is keyed by the tokens of a cell, so that cells of equal content are on the same side, in whichever
atlases they are. What still occurs on both sides is left out of training (`training.overlap`).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.atlas.obs_filter import parse
from scgpt_ray.schema import CONTENT, known_texts

TRAINING, VALIDATION, NEITHER = 0, 1, -1
"""Sides of a split; a cell whose group is unknown is on neither."""

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
"""A step of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195)."""


@dataclass(frozen=True)
class Split:
    """How cells are split; the same for a cell wherever it is stored.

    Args:
        condition: Filter on obs columns that selects the validation cells; None to split otherwise.
        column: obs column of the groups that are never divided; None to split otherwise.
        groups: Groups whose cells are for validation.
        share: Share of the cells for validation if neither a condition nor a column is given, 0 to 1.
    """

    condition: str | None
    column: str | None
    groups: tuple[str, ...]
    share: float
    seed: int

    def sides(self, tokens: pa.Table, where: str) -> npt.NDArray[np.int8]:
        """Choose the side of each cell.

        Args:
            tokens: TOKENS, with the columns of the condition or groups.
            where: The atlas, for messages.

        Returns:
            int8 [n]: TRAINING, VALIDATION or NEITHER.

        Raises:
            AtlasError: If the condition is invalid.
        """
        if self.condition is not None:
            return parse(self.condition, tokens.schema, where, "--validation-filter").mask(tokens).astype(np.int8)
        if self.column is not None:
            group_N = known_texts(tokens[self.column])
            is_chosen = pc.is_in(group_N, value_set=pa.array(self.groups, pa.string())).to_numpy()
            return np.where(pc.is_null(group_N).to_numpy(), NEITHER, is_chosen).astype(np.int8)
        draw_N = _mixed(tokens[CONTENT].to_numpy() ^ np.uint64(_key(str(self.seed))))
        return (draw_N < self.share * 2.0**64).astype(np.int8)


def choose_groups(names: Iterable[str], share: float, seed: int) -> tuple[str, ...]:
    """Draw the validation groups: a share of them, but at least one and not all.

    Args:
        names: Names of at least two groups.
        share: Share of the groups, 0 to 1.
        seed: Seed of the draw.
    """
    drawn = sorted(set(names), key=lambda name: _key(f"{seed} {name}"))
    return tuple(sorted(drawn[: min(max(1, round(share * len(drawn))), len(drawn) - 1)]))


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + _INCREMENT
    values = (values ^ values >> _SHIFTS[0]) * _MULTIPLIERS[0]
    values = (values ^ values >> _SHIFTS[1]) * _MULTIPLIERS[1]
    return values ^ values >> _SHIFTS[2]


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
