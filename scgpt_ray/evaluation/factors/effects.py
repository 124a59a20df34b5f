"""Batch effects: how each factor changes the counts, and how much of it an embedding carries.

scGPT's authors distinguish type I effects, which are global (sequencing depth, time of capture), from type II effects,
which are gene-specific (protocol, platform). Pretraining may average out the former, and learns the latter as signal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.components import require_counts
from scgpt_ray.evaluation.factors.contrast import MIN_REPLICATES
from scgpt_ray.evaluation.factors.expression import ExpressionShift, expression_shift
from scgpt_ray.evaluation.factors.probe import Probe, Purity, neighbour_purity, probe_levels
from scgpt_ray.evaluation.factors.variance import VarianceShares, explained_variance
from scgpt_ray.evaluation.labels.metrics import has_truth
from scgpt_ray.evaluation.sample import numbered
from scgpt_ray.schema import Float32Matrix, Int64Array

MAX_LEVELS = 500
"""A text column with more values identifies cells rather than groups of cells."""

DEPTH = "counts per cell (log10)"
"""Name of the factor that is added if counts are given."""

CELL = "cell"
"""Unit of a factor without replicates: what is found then holds for the evaluated cells only."""

_NUMERIC_FROM = 11
_QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")


@dataclass(frozen=True, eq=False)
class Factor:
    """An obs column whose effect is evaluated.

    Attributes:
        levels: Names of its values, or of the quarters of a numeric column.
        level_N: int64 [n], numbered from 0; -1 for a missing value.
        number_N: float64 [n] for a numeric column with more than ten values, NaN for a missing value; else None.
        is_condition: Whether it is biology, such as a treatment, whose effect an embedding should keep.
    """

    name: str
    levels: tuple[str, ...]
    level_N: Int64Array
    number_N: npt.NDArray[np.float64] | None
    is_condition: bool = False

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
        level_N, levels = numbered(values)
        return cls(name, tuple(levels.tolist()), level_N, None)


def _numeric(name: str, known: npt.NDArray[np.bool_], numbers: npt.NDArray[np.float64]) -> Factor:
    """A numeric factor, with quarters as levels; ties may leave a quarter without cells."""
    number_N, level_N = np.full(len(known), np.nan), np.full(len(known), -1, np.int64)
    number_N[known] = numbers
    level_N[known] = np.searchsorted(np.quantile(numbers, (0.25, 0.5, 0.75)), numbers)
    return Factor(name, _QUARTERS, level_N, number_N)


@dataclass(frozen=True, eq=False)
class Replicates:
    """The column whose values, such as donors, are the units of tests.

    Attributes:
        replicate_N: int64 [n], numbered from 0; -1 for a missing value.
    """

    name: str
    replicate_N: Int64Array

    @property
    def n(self) -> int:
        """Number of replicates."""
        return int(self.replicate_N.max(initial=-1)) + 1

    def text(self) -> str:
        """The column, and the numbers of replicates and of cells without one."""
        missing = int((self.replicate_N < 0).sum())
        return f"{self.name}: {self.n:,}" + (f"; {missing:,} cells have none" if missing else "")

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> "Replicates":
        """Number the values, one per cell; null, empty, `unknown` and `nan` are missing."""
        return cls(name, numbered(values)[0])


@dataclass(frozen=True)
class FactorInEmbedding:
    """How much of a factor an embedding carries in addition to the label.

    Attributes:
        probe: Held-out linear probe within labels; None if no label has enough cells of two levels.
        purity: Purity of neighbours within labels; None in the same case.
    """

    embedding: str
    variance: VarianceShares
    probe: Probe | None
    purity: Purity | None

    @property
    def is_carried(self) -> bool | None:
        """Whether the probe is above chance for held-out replicates; None if that cannot be determined."""
        return None if self.probe is None else self.probe.is_above_chance

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values for JSON."""
        return asdict(self) | {"is_carried": self.is_carried}


@dataclass(frozen=True)
class FactorEffect:
    """The effect of a factor.

    Attributes:
        is_condition: As of the `Factor`.
        within: What cells have in common that are compared: `label`, or `label and condition`.
        unit: Column of the replicates, or CELL without replicates.
        levels: Level -> number of cells.
        replicates: Level -> number of replicates that have it; empty without replicates.
        n_missing: Cells without a value or without a replicate, which are left out.
        shift: Differences in the counts; None if they cannot be determined.
        no_shift: Why they, or the kind of effect, cannot be determined; None if they can.
        embeddings: How much of the factor each embedding carries.
    """

    name: str
    is_condition: bool
    within: str
    unit: str
    levels: dict[str, int]
    replicates: dict[str, int]
    n_missing: int
    shift: ExpressionShift | None
    no_shift: str | None
    embeddings: tuple[FactorInEmbedding, ...]

    @property
    def kind(self) -> str:
        """`type I` (global), `type II` (gene-specific), `both`, `not detected` or `cannot tell`."""
        if self.shift is None:
            return "cannot tell"
        depth, genes = self.shift.depth.is_claimed, self.shift.genes and self.shift.genes.is_claimed
        if depth or genes:
            return "both" if depth and genes else "type I" if depth else "type II"
        return "cannot tell" if depth is None or genes is None else "not detected"


def explain_factors(
    factors: Sequence[Factor],
    embeddings: Mapping[str, Float32Matrix],
    labels: Sequence[str],
    *,
    counts_NG: sparse.csr_matrix | None,
    genes_G: npt.NDArray[np.object_] | None,
    replicates: Replicates | None,
    seed: int,
    conditions: Sequence[str] | None = None,
) -> tuple[FactorEffect, ...]:
    """Determine the effects of factors within labels, and, unless they are conditions, within conditions.

    Args:
        factors: Columns of the evaluated cells.
        embeddings: Name -> float32 [n, d].
        labels: Label of each cell; all the same without labels.
        counts_NG: Counts [n, genes], CSR, whole numbers, or None. Their sum per cell becomes one more factor.
        genes_G: Name of each gene of `counts_NG`.
        replicates: Units of the tests; None without a column of them.
        seed: Seed of the folds.
        conditions: Condition of each cell; None without.

    Raises:
        InputError: If the counts are not whole numbers, or a cell has no counts.
    """
    depth = []
    if counts_NG is not None:
        require_counts(counts_NG)
        totals = np.log10(np.asarray(counts_NG.sum(axis=1), np.float64).ravel())
        depth = [_numeric(DEPTH, np.ones(len(totals), bool), totals)]
    both = labels if conditions is None else [" / ".join(pair) for pair in zip(labels, conditions, strict=True)]
    effects = []
    for factor in (*factors, *depth):
        within = "label" if factor.is_condition or conditions is None else "label and condition"
        grouping = np.asarray(labels if within == "label" else both, str)
        label_names, label_N = np.unique(grouping, return_inverse=True)
        units = replicates if replicates and replicates.name != factor.name else None
        known = np.flatnonzero((factor.level_N >= 0) & (units is None or units.replicate_N >= 0))
        label, level = label_N[known], factor.level_N[known]
        # Without replicates all cells are one; those of a factor that is the column itself are its levels.
        unit = np.zeros(len(known), np.int64) if replicates is None else replicates.replicate_N[known]
        shift = None
        if counts_NG is not None and genes_G is not None and factor not in depth:
            shift = expression_shift(counts_NG[known], genes_G, label, level, unit, label_names.tolist(), factor.levels)
        effects.append(
            FactorEffect(
                name=factor.name,
                is_condition=factor.is_condition,
                within=within,
                unit=units.name if units else CELL,
                levels=_named_counts(factor, level),
                replicates=_named_counts(factor, *np.unique([level, unit], axis=1)[:1]) if units else {},
                n_missing=len(factor.level_N) - len(known),
                shift=shift,
                no_shift=_no_shift(factor, shift, replicates, has_counts=counts_NG is not None),
                embeddings=tuple(
                    _carried(name, vectors[known], label, factor, known, unit if units else None, seed)
                    for name, vectors in embeddings.items()
                ),
            )
        )
    return tuple(effects)


def _named_counts(factor: Factor, level: Int64Array) -> dict[str, int]:
    return {factor.levels[number]: int(count) for number, count in enumerate(np.bincount(level)) if count}


def _no_shift(
    factor: Factor, shift: ExpressionShift | None, replicates: Replicates | None, *, has_counts: bool
) -> str | None:
    """Why the effect on the counts cannot be determined, None if it can."""
    if not has_counts:
        return "no counts were given"
    if factor.name == DEPTH:
        return "it is the depth itself"
    if shift is None:
        return "no label has two of its levels with enough cells and counts to compare"
    if replicates is None:
        return "there is no column of replicates such as donors"
    if replicates.name == factor.name:
        return f"each value of {factor.name} is a single replicate"
    if shift.depth.is_claimed is None:
        return f"fewer than {MIN_REPLICATES} replicates ({replicates.name}) per level can be compared"
    if shift.genes is None or shift.genes.is_claimed is None:
        return f"no label has enough counts in {MIN_REPLICATES} replicates ({replicates.name}) per level to test genes"
    return None


def _carried(
    name: str,
    vectors_ND: Float32Matrix,
    label_N: Int64Array,
    factor: Factor,
    known: npt.NDArray[np.integer],
    replicate_N: Int64Array | None,
    seed: int,
) -> FactorInEmbedding:
    level_N = factor.level_N[known]
    number_N = None if factor.number_N is None else factor.number_N[known]
    return FactorInEmbedding(
        embedding=name,
        variance=explained_variance(vectors_ND, label_N, level_N, number_N),
        probe=probe_levels(vectors_ND, label_N, level_N, replicate_N, seed=seed),
        purity=neighbour_purity(vectors_ND, label_N, level_N),
    )
