"""How well a factor can be predicted from an embedding: a held-out linear probe, and nearest neighbours.

Both work within labels, so that differences between cell types are not taken for effects of the factor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scgpt_ray.evaluation.factors.contrast import MIN_REPLICATES, SIGNIFICANCE
from scgpt_ray.evaluation.neighbors import groups_of, nearest
from scgpt_ray.evaluation.sample import strata_of
from scgpt_ray.schema import Float32Matrix, Int64Array

MIN_CELLS_PER_LEVEL = 10
"""A level with fewer cells in a label is left out of that label."""

_FOLDS = 5
_PENALTY = 100.0
_NEIGHBORS = 15


@dataclass(frozen=True)
class Probe:
    """Balanced accuracy of a linear probe within labels; means over folds.

    Attributes:
        score: Mean over folds, and in a fold over labels, weighted by cells.
        chance: Score expected by chance.
        low: Lower end of the 95 % interval; None unless at least three folds hold out replicates, also below.
        high: Its upper end.
        p: P-value of the difference from chance.
        threshold: Score from which the embedding would have been said to carry the factor.
        held_out: What a fold holds out: `replicates` or `cells`.
        n_cells: Number of cells predicted.
        n_labels: Number of their labels.
    """

    score: float
    chance: float
    low: float | None
    high: float | None
    p: float | None
    threshold: float | None
    held_out: str
    n_folds: int
    n_cells: int
    n_labels: int

    @property
    def is_above_chance(self) -> bool | None:
        """Whether the score is above chance for replicates that were held out; None if that cannot be determined."""
        return None if self.p is None else self.p < SIGNIFICANCE and self.score > self.chance


@dataclass(frozen=True)
class Purity:
    """Share of a cell's 15 nearest neighbours within its label that have its level; mean over cells.

    Attributes:
        expected: Expected share for neighbours drawn at random within the label.
    """

    share: float
    expected: float
    n_cells: int


def probe_levels(
    vectors_ND: Float32Matrix,
    label_N: Int64Array,
    level_N: Int64Array,
    replicate_N: Int64Array | None,
    *,
    seed: int,
) -> Probe | None:
    """Predict a factor's level from the embedding within each label, by cross-validation over replicates.

    The probe is a ridge classifier on standardised dimensions, with equal weights of the levels. Folds, at most five,
    hold out whole replicates, of each level at least one. If a level has one replicate only, they hold out cells.

    Args:
        vectors_ND: float32 [n, d].
        label_N: int64 [n].
        level_N: int64 [n], levels numbered from 0.
        replicate_N: int64 [n]; None to hold out cells.
        seed: Seed of the folds.

    Returns:
        None if no label has two levels with at least ten cells each, or each has them in a single replicate only.
    """
    labels = list(_probed_labels(label_N, level_N))
    if not labels:
        return None
    probed = np.concatenate(labels)
    fold_N, n_folds, held_out = np.full(len(level_N), -1), 1, "replicates"
    if replicate_N is not None:
        fold_N[probed], n_folds = _replicate_folds(level_N[probed], replicate_N[probed], seed)
    if n_folds == 1:
        held_out, n_folds = "cells", _FOLDS
        fold_N[probed] = _dealt(strata_of(label_N[probed], level_N[probed]), n_folds, seed)
    figures = [
        (fold, number, *_fold_score(vectors_ND[cells], level_N[cells], fold_N[cells] == fold))
        for number, cells in enumerate(labels)
        for fold in range(n_folds)
    ]
    fold_P, label_P, n_P, score_P, chance_P = np.array([each for each in figures if each[2]]).reshape(-1, 5).T
    if not len(fold_P):
        return None
    folds = groups_of(fold_P.astype(np.int64))
    excess_F = np.array([np.average((score_P - chance_P)[parts], weights=n_P[parts]) for parts in folds])
    chance = float(np.average(chance_P, weights=n_P))
    is_tested = held_out == "replicates" and len(folds) >= MIN_REPLICATES
    low, high, p, threshold = _corrected_t(excess_F, chance) if is_tested else (None, None, None, None)
    return Probe(
        score=float(chance + excess_F.mean()),
        chance=chance,
        low=low,
        high=high,
        p=p,
        threshold=threshold,
        held_out=held_out,
        n_folds=len(folds),
        n_cells=int(n_P.sum()),
        n_labels=len(np.unique(label_P)),
    )


def _replicate_folds(level: Int64Array, replicate: Int64Array, seed: int) -> tuple[Int64Array, int]:
    """Fold of each cell, and the number of folds; replicates with the same levels are spread over the folds."""
    names, replicate = np.unique(replicate, return_inverse=True)
    has_RL = np.zeros((len(names), level.max() + 1), bool)
    has_RL[replicate, level] = True
    n_folds = int(min(_FOLDS, has_RL.sum(axis=0)[has_RL.any(axis=0)].min()))
    stratum_R = np.unique(has_RL, axis=0, return_inverse=True)[1]
    return _dealt(stratum_R, n_folds, seed)[replicate], n_folds


def _dealt(strata: Int64Array, n_folds: int, seed: int) -> Int64Array:
    """Fold of each member, dealt at random, one stratum after another."""
    random, fold = np.random.default_rng(seed), np.empty(len(strata), np.int64)
    # The deal goes on where the last stratum ended: small strata would all begin in the same fold.
    order = np.concatenate([random.permutation(members) for members in groups_of(strata)])
    fold[order] = np.arange(len(order)) % n_folds
    return fold


def _fold_score(
    vectors_ND: Float32Matrix, level_N: Int64Array, is_held_out_N: npt.NDArray[np.bool_]
) -> tuple[int, float, float]:
    """Cells predicted in a label, their balanced accuracy, and chance; no cells if a level is not in training."""
    levels, training = np.unique(level_N), np.unique(level_N[~is_held_out_N])
    if len(training) < len(levels) or not is_held_out_N.any():
        return 0, 0.0, 0.0
    model = make_pipeline(StandardScaler(), RidgeClassifier(_PENALTY, class_weight="balanced"))
    model.fit(vectors_ND[~is_held_out_N], level_N[~is_held_out_N])
    held_out = level_N[is_held_out_N]
    predicted = model.predict(vectors_ND[is_held_out_N])
    score = recall_score(held_out, predicted, labels=np.unique(held_out), average="macro")
    return len(held_out), float(score), 1 / len(levels)


def _corrected_t(excess_F: npt.NDArray[np.float64], chance: float) -> tuple[float, float, float, float]:
    """Interval, p value and threshold of the mean over folds.

    Training sets overlap, so that folds are not independent: their variance is weighted by 1/k + 1/(k - 1) instead of
    1/k (Nadeau and Bengio 2003, doi:10.1023/A:1024068626366).
    """
    k, mean = len(excess_F), float(excess_F.mean())
    error = float(excess_F.std(ddof=1) * np.sqrt(1 / k + 1 / (k - 1)))
    half_width = float(stats.t.isf(SIGNIFICANCE / 2, k - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, k - 1)) if error else float(mean == 0)
    return chance + mean - half_width, chance + mean + half_width, p, chance + half_width


def neighbour_purity(vectors_ND: Float32Matrix, label_N: Int64Array, level_N: Int64Array) -> Purity | None:
    """How often neighbours with the same label also have the same level.

    Returns:
        None if no label has two levels with at least ten cells each.
    """
    found, expected = [], []
    for cells in _probed_labels(label_N, level_N):
        level = level_N[cells]
        places_NK, _ = nearest(vectors_ND[cells], min(_NEIGHBORS, len(cells) - 1))
        found.append((level[places_NK] == level[:, None]).mean(axis=1))
        expected.append((np.bincount(level)[level] - 1) / (len(cells) - 1))
    if not found:
        return None
    shares = np.concatenate(found)
    return Purity(float(shares.mean()), float(np.concatenate(expected).mean()), len(shares))


def _probed_labels(label_N: Int64Array, level_N: Int64Array) -> Iterator[Int64Array]:
    """Cells of each label that has at least two levels with enough cells, without the cells of other levels."""
    for cells in groups_of(label_N):
        enough = np.bincount(level_N[cells]) >= MIN_CELLS_PER_LEVEL
        if enough.sum() > 1:
            yield cells[enough[level_N[cells]]]
