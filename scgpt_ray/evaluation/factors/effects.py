"""Batch effects: how each factor changes the counts, and how much of it an embedding carries.

scGPT's authors distinguish type I effects, which are global (sequencing depth, time of capture), from type II effects,
which are gene-specific (protocol, platform). Pretraining may average out the former, and learns the latter as signal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.components import require_counts
from scgpt_ray.evaluation.factors.expression import ExpressionShift, expression_shift
from scgpt_ray.evaluation.factors.probe import Probe, Purity, neighbour_purity, probe_levels, probe_number
from scgpt_ray.evaluation.factors.variance import VarianceShares, explained_variance
from scgpt_ray.evaluation.labels.metrics import has_truth
from scgpt_ray.schema import Float32Matrix, Int64Array

MAX_LEVELS = 500
"""A text column with more values identifies cells rather than groups of cells."""

DEPTH = "counts per cell (log10)"
"""Name of the factor that is added if counts are given."""

_CARRIED_LEAST, _CARRIED_ERRORS = 0.05, 3
_NUMERIC_FROM = 11
_QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")


@dataclass(frozen=True, eq=False)
class Factor:
    """An obs column whose effect is evaluated.

    Attributes:
        name: Name of the column.
        levels: Names of its values, or of the quarters of a numeric column.
        level_N: int64 [n], numbered from 0; -1 for a missing value.
        number_N: float64 [n] for a numeric column with more than ten values, NaN for a missing value; else None.
    """

    name: str
    levels: tuple[str, ...]
    level_N: Int64Array
    number_N: npt.NDArray[np.float64] | None

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> "Factor":
        """Make a factor of a column.

        Args:
            name: Name of the column.
            values: One per cell; null, empty, `unknown` and `nan` are missing.

        Raises:
            InputError: If all cells have the same value, or there are more than MAX_LEVELS values of text.
        """
        known = has_truth(np.asarray(values, object))
        present = np.asarray(values, object)[known]
        is_number = all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in present)
        distinct = len(set(present.tolist()))
        if is_number and distinct >= _NUMERIC_FROM:
            return _numeric(name, known, present.astype(np.float64))
        if not 1 < distinct <= MAX_LEVELS:
            raise InputError(
                f"column {name} has {distinct:,} values in {len(known):,} cells"
                if distinct > 1
                else f"all {len(known):,} cells have the same {name}, or none",
                expected=f"2 to {MAX_LEVELS} values",
                remedy="omit that column, or name one that groups the cells",
            )
        levels, codes = np.unique(present.astype(str), return_inverse=True)
        level_N = np.full(len(known), -1, np.int64)
        level_N[known] = codes
        return cls(name, tuple(levels.tolist()), level_N, None)


def _numeric(name: str, known: npt.NDArray[np.bool_], numbers: npt.NDArray[np.float64]) -> Factor:
    """A numeric factor, with quarters as levels; ties may leave a quarter without cells."""
    number_N, level_N = np.full(len(known), np.nan), np.full(len(known), -1, np.int64)
    number_N[known] = numbers
    level_N[known] = np.searchsorted(np.quantile(numbers, (0.25, 0.5, 0.75)), numbers)
    return Factor(name, _QUARTERS, level_N, number_N)


@dataclass(frozen=True)
class FactorInEmbedding:
    """How much of a factor an embedding carries in addition to the label.

    Attributes:
        embedding: Name of the embedding.
        variance: Shares of the embedding's variance.
        probe: Held-out linear probe within labels; None if no label has enough cells of two levels.
        purity: Purity of neighbours within labels; None in the same case.
    """

    embedding: str
    variance: VarianceShares
    probe: Probe | None
    purity: Purity | None

    @property
    def is_carried(self) -> bool | None:
        """Whether the probe beats chance by more than 0.05 and three standard errors; None without a probe."""
        if self.probe is None:
            return None
        return self.probe.score - self.probe.chance > max(_CARRIED_LEAST, _CARRIED_ERRORS * self.probe.error)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values for JSON."""
        return {
            "embedding": self.embedding,
            "variance": vars(self.variance),
            "probe": vars(self.probe) if self.probe else None,
            "purity": vars(self.purity) if self.purity else None,
            "is_carried": self.is_carried,
        }


@dataclass(frozen=True)
class FactorEffect:
    """The effect of a factor.

    Attributes:
        name: Name of the factor.
        levels: Level -> number of cells.
        n_missing: Cells without a value, which are left out.
        shift: Differences in the counts; None if they cannot be determined.
        no_shift: Why they cannot be determined.
        embeddings: How much of the factor each embedding carries.
    """

    name: str
    levels: dict[str, int]
    n_missing: int
    shift: ExpressionShift | None
    no_shift: str | None
    embeddings: tuple[FactorInEmbedding, ...]

    @property
    def kind(self) -> str | None:
        """`type I` (global), `type II` (gene-specific), `both` or `none`; None if it cannot be determined."""
        if self.shift is None:
            return None
        kinds = {(True, False): "type I", (False, True): "type II", (True, True): "both", (False, False): "none"}
        return kinds[self.shift.is_global, self.shift.is_gene_specific]


def explain_factors(
    factors: Sequence[Factor],
    embeddings: Mapping[str, Float32Matrix],
    label_N: Int64Array,
    *,
    counts_NG: sparse.csr_matrix | None,
    genes_G: npt.NDArray[np.object_] | None,
    groups: Factor | None,
    seed: int,
) -> tuple[FactorEffect, ...]:
    """Determine the effects of factors within labels.

    Args:
        factors: Columns of the evaluated cells.
        embeddings: Name -> float32 [n, d].
        label_N: int64 [n], numbered from 0; all 0 without labels.
        counts_NG: Counts [n, genes], CSR, whole numbers, or None. Their sum per cell becomes one more factor.
        genes_G: Name of each gene of `counts_NG`.
        groups: Factor, such as the donor, whose levels are held out as a whole by probes of other factors if possible.
        seed: Seed of folds and thinning.

    Raises:
        InputError: If the counts are not whole numbers, or a cell has no counts.
    """
    depth = []
    if counts_NG is not None:
        require_counts(counts_NG)
        totals = np.log10(np.asarray(counts_NG.sum(axis=1), np.float64).ravel())
        depth = [_numeric(DEPTH, np.ones(len(totals), bool), totals)]
    effects = []
    for factor in (*factors, *depth):
        known = np.flatnonzero(factor.level_N >= 0)
        label, level = label_N[known], factor.level_N[known]
        shift = None
        if counts_NG is not None and genes_G is not None and factor not in depth:
            shift = expression_shift(counts_NG[known], genes_G, label, level, factor.levels, seed=seed)
        effects.append(
            FactorEffect(
                name=factor.name,
                levels={factor.levels[number]: int(cells) for number, cells in enumerate(np.bincount(level)) if cells},
                n_missing=len(factor.level_N) - len(known),
                shift=shift,
                no_shift=None if shift else _no_shift(factor, has_counts=counts_NG is not None),
                embeddings=tuple(
                    _carried(name, vectors[known], label, factor, known, groups, seed)
                    for name, vectors in embeddings.items()
                ),
            )
        )
    return tuple(effects)


def _no_shift(factor: Factor, *, has_counts: bool) -> str:
    if not has_counts:
        return "no counts were given"
    if factor.name == DEPTH:
        return "it is the depth itself"
    return "no label has two of its levels with enough cells and counts to compare"


def _carried(
    name: str,
    vectors_ND: Float32Matrix,
    label_N: Int64Array,
    factor: Factor,
    known: npt.NDArray[np.integer],
    groups: Factor | None,
    seed: int,
) -> FactorInEmbedding:
    level_N = factor.level_N[known]
    number_N = None if factor.number_N is None else factor.number_N[known]
    if number_N is None:
        held_out = groups.level_N[known] if groups is not None and groups.name != factor.name else None
        probe = probe_levels(vectors_ND, label_N, level_N, held_out, seed=seed)
    else:
        probe = probe_number(vectors_ND, label_N, number_N, seed=seed)
    return FactorInEmbedding(
        embedding=name,
        variance=explained_variance(vectors_ND, label_N, level_N, number_N),
        probe=probe,
        purity=neighbour_purity(vectors_ND, label_N, level_N),
    )
