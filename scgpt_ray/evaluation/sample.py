"""Which cells are evaluated: those with a label, a batch key and an embedding, or a stratified sample of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.labels.metrics import Labels, has_truth
from scgpt_ray.schema import Int64Array

MAX_CELLS = 20_000
"""Cells that metrics are computed on by default: their cost grows with the square of it."""

MIN_CELLS = 16
"""Below this there are no neighbourhoods: graphs have 15 neighbours."""

_LEAST_PER_STRATUM = 10


@dataclass(frozen=True, eq=False)
class Selection:
    """The cells that are evaluated, and what became of the others.

    Attributes:
        rows: int64 [n], ascending places of the evaluated cells among all of them.
        n_cells: All cells.
        n_without_embedding: Cells that have none; these are in no other count.
        n_without_label: Cells left out because their label is null, empty, `unknown` or `nan`.
        n_without_batch_key: Cells with a label, left out because their batch key is such.
        seed: Seed of the sample.
    """

    rows: Int64Array
    n_cells: int
    n_without_embedding: int
    n_without_label: int
    n_without_batch_key: int
    seed: int

    @property
    def n_evaluated(self) -> int:
        """Cells that are evaluated."""
        return len(self.rows)

    @property
    def n_eligible(self) -> int:
        """Cells that could be."""
        return self.n_cells - self.n_without_embedding - self.n_without_label - self.n_without_batch_key

    @property
    def is_sample(self) -> bool:
        """Whether only some of the eligible cells are evaluated."""
        return self.n_evaluated < self.n_eligible

    def text(self) -> str:
        """What is evaluated, as a sentence for a person."""
        left_out = {
            "without an embedding": self.n_without_embedding,
            "without a label": self.n_without_label,
            "without a batch key": self.n_without_batch_key,
        }
        told = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
        evaluated = f"{self.n_evaluated:,} of {self.n_cells:,} cells are evaluated"
        if self.is_sample:
            evaluated += (
                f", a sample of the {self.n_eligible:,} eligible ones by label and batch key (seed {self.seed})"
            )
        return evaluated + (f"; left out: {told}." if told else ".")

    def to_dict(self) -> dict[str, Any]:
        """All counts for JSON, without the rows."""
        counts = {name: value for name, value in vars(self).items() if name != "rows"}
        return counts | {"n_eligible": self.n_eligible, "n_evaluated": self.n_evaluated, "is_sample": self.is_sample}


def select_cells(
    present: npt.NDArray[np.bool_],
    labels: Labels | None,
    batch_keys: Labels,
    *,
    max_cells: int,
    seed: int,
) -> Selection:
    """Choose the cells to evaluate.

    Args:
        present: Which cells have an embedding, bool [n].
        labels: [n]; null, empty, `unknown` and `nan` are none. None where there are no labels at all.
        batch_keys: [n], likewise.
        max_cells: Above this many, a sample stratified by label and batch key is drawn.
        seed: Of the sample.

    Raises:
        InputError: If fewer than MIN_CELLS remain.
    """
    labelled = np.ones(len(present), bool) if labels is None else has_truth(labels)
    keyed = has_truth(batch_keys)
    eligible = np.flatnonzero(present & labelled & keyed)
    if len(eligible) < MIN_CELLS:
        raise InputError(
            f"{len(eligible)} of {len(present):,} cells have an embedding, a label and a batch key",
            expected=f"at least {MIN_CELLS}",
            remedy="name other columns with --label-column and --batch-column",
        )
    columns = [
        np.asarray(column, object)[eligible].astype(str) for column in (labels, batch_keys) if column is not None
    ]
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
    """Number the combinations of values, int64 [n]."""
    stratum = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        names, codes = np.unique(column, return_inverse=True)
        stratum = np.unique(stratum * len(names) + codes, return_inverse=True)[1]
    return stratum


def stratified_sample(strata: Int64Array, size: int, *, seed: int) -> Int64Array:
    """Draw cells without replacement: ten of each stratum, so that no rare label vanishes, the rest in proportion.

    A stratum with fewer than ten gives all that it has, and all give fewer where there is no room for ten of each.
    The rest is shared out in proportion to the cells still there, by largest remainders.

    Args:
        strata: Stratum of each cell, int64 [n], numbered from 0.
        size: Cells to draw; all are taken where there are no more.
        seed: Of the draw.

    Returns:
        int64 [min(n, size)], ascending.
    """
    if len(strata) <= size:
        return np.arange(len(strata))
    stock = np.bincount(strata)
    shuffled = np.random.default_rng(seed).permutation(len(strata))
    by_stratum = shuffled[np.argsort(strata[shuffled], kind="stable")]
    starts = np.cumsum(stock) - stock
    chosen = [
        by_stratum[start : start + count] for start, count in zip(starts, stratum_quotas(stock, size), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def stratum_quotas(stock: Int64Array, size: int) -> Int64Array:
    """Cells that `stratified_sample` draws of each stratum.

    Args:
        stock: Cells of each stratum, int64 [strata].
        size: Cells to draw of all of them.

    Returns:
        int64 [strata], together `size`, or all cells where there are no more.
    """
    if stock.sum() <= size:
        return stock
    floor = np.minimum(stock, min(_LEAST_PER_STRATUM, size // len(stock)))
    share = (size - floor.sum()) * (stock - floor) / (stock - floor).sum()
    quota: Int64Array = floor + share.astype(np.int64)
    by_remainder = np.argsort(-(share % 1), kind="stable")
    quota[by_remainder[: size - quota.sum()]] += 1
    return quota
