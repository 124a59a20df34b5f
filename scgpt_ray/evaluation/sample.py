"""The cells to evaluate: those with a label, a batch key and an embedding, or a stratified sample of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.labels.metrics import has_truth
from scgpt_ray.schema import Int64Array

MIN_CELLS = 16
"""Minimum number of cells, for graphs of 15 neighbours."""

_LEAST_PER_STRATUM = 10


@dataclass(frozen=True, eq=False)
class Selection:
    """The cells to evaluate, and the numbers of those left out.

    Attributes:
        rows: int64 [n], ascending positions of the cells among all cells.
        n_without_embedding: Cells without an embedding; they are in no other count.
        n_without_label: Cells left out because their label is null, empty, `unknown` or `nan`.
        n_without_batch_key: Labelled cells left out because their batch key is null, empty, `unknown` or `nan`.
    """

    rows: Int64Array
    n_cells: int
    n_without_embedding: int
    n_without_label: int
    n_without_batch_key: int
    seed: int

    @property
    def n_evaluated(self) -> int:
        """Number of cells to evaluate."""
        return len(self.rows)

    @property
    def n_eligible(self) -> int:
        """Number of cells with an embedding, a label and a batch key."""
        return self.n_cells - self.n_without_embedding - self.n_without_label - self.n_without_batch_key

    @property
    def is_sample(self) -> bool:
        """Whether only some of the eligible cells are evaluated."""
        return self.n_evaluated < self.n_eligible

    def text(self) -> str:
        """The selection as a sentence."""
        left_out = {
            "without an embedding": self.n_without_embedding,
            "without a label": self.n_without_label,
            "without a batch key": self.n_without_batch_key,
        }
        reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
        evaluated = f"{self.n_evaluated:,} of {self.n_cells:,} cells are evaluated"
        if self.is_sample:
            evaluated += (
                f", a sample of the {self.n_eligible:,} eligible ones by label and batch key (seed {self.seed})"
            )
        return evaluated + (f"; left out: {reasons}." if reasons else ".")

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain values for JSON."""
        counts = {name: value for name, value in vars(self).items() if name != "rows"}
        return counts | {"n_eligible": self.n_eligible, "n_evaluated": self.n_evaluated, "is_sample": self.is_sample}


def numbered(values: Sequence[Any]) -> tuple[Int64Array, npt.NDArray[np.object_]]:
    """Place of each value among the sorted texts, int64 [n], -1 for a missing one; and the texts.

    Null, empty, `unknown` and `nan` are missing.
    """
    texts = np.array([str(value) for value in values], object)
    texts[~has_truth(np.asarray(values, object))] = None
    return pd.factorize(texts, sort=True)


def select_cells(
    present: npt.NDArray[np.bool_],
    label_N: npt.NDArray[np.integer] | None,
    key_N: npt.NDArray[np.integer],
    *,
    max_cells: int,
    seed: int,
) -> Selection:
    """Choose the cells to evaluate.

    Args:
        present: bool [n], cells that have an embedding.
        label_N: Label of each cell, [n], as `numbered` gives them; None without labels.
        key_N: Batch key of each cell, [n], likewise.
        max_cells: Size of the sample, stratified by label and batch key, that is drawn if there are more cells.
        seed: Seed of the sample.

    Raises:
        InputError: If fewer than MIN_CELLS remain.
    """
    labelled = np.ones(len(present), bool) if label_N is None else label_N >= 0
    keyed = key_N >= 0
    eligible = np.flatnonzero(present & labelled & keyed)
    if len(eligible) < MIN_CELLS:
        raise InputError(
            f"{len(eligible)} of {len(present):,} cells have an embedding, a label and a batch key",
            expected=f"at least {MIN_CELLS}",
            remedy="name other columns with --label-column and --batch-column",
        )
    columns = [code_N[eligible] for code_N in (label_N, key_N) if code_N is not None]
    rows = eligible[stratified_sample(strata_of(*columns), max_cells, seed=seed)]
    return Selection(
        rows=rows.astype(np.int64),
        n_cells=len(present),
        n_without_embedding=int((~present).sum()),
        n_without_label=int((present & ~labelled).sum()),
        n_without_batch_key=int((present & labelled & ~keyed).sum()),
        seed=seed,
    )


def strata_of(*columns: npt.NDArray[np.generic]) -> Int64Array:
    """Number the combinations of values in sorted order, int64 [n]."""
    numbered = pd.DataFrame(dict(enumerate(columns))).groupby(list(range(len(columns)))).ngroup()
    return np.asarray(numbered, np.int64)


def stratified_sample(strata: Int64Array, size: int, *, seed: int) -> Int64Array:
    """Draw cells without replacement: ten of each stratum, which keeps rare labels, and the rest in proportion.

    Strata of fewer than ten cells are taken whole; if `size` is too small for ten of each, all get fewer. The rest is
    allocated in proportion to the remaining cells, by largest remainders.

    Args:
        strata: Stratum of each cell, int64 [n], numbered from 0.
        size: Number of cells to draw; all cells if there are no more.
        seed: Seed of the draw.

    Returns:
        int64 [min(n, size)], ascending.
    """
    if len(strata) <= size:
        return np.arange(len(strata))
    available = np.bincount(strata)
    shuffled = np.random.default_rng(seed).permutation(len(strata))
    by_stratum = shuffled[np.argsort(strata[shuffled], kind="stable")]
    starts = np.cumsum(available) - available
    chosen = [
        by_stratum[start : start + count] for start, count in zip(starts, stratum_quotas(available, size), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def stratum_quotas(available: Int64Array, size: int) -> Int64Array:
    """Number of cells that `stratified_sample` draws of each stratum.

    Args:
        available: Cells of each stratum, int64 [strata].
        size: Total number of cells to draw.

    Returns:
        int64 [strata] with the sum `size`, or all cells if there are no more.
    """
    if available.sum() <= size:
        return available
    floor = np.minimum(available, min(_LEAST_PER_STRATUM, size // len(available)))
    share = (size - floor.sum()) * (available - floor) / (available - floor).sum()
    quota: Int64Array = floor + share.astype(np.int64)
    by_remainder = np.argsort(-(share % 1), kind="stable")
    quota[by_remainder[: size - quota.sum()]] += 1
    return quota
