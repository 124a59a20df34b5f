"""How well a factor can be predicted from an embedding: a held-out linear probe, and nearest neighbours.

Both work within labels, so that differences between cell types are not taken for effects of the factor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import r2_score, recall_score
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scgpt_ray.evaluation.neighbors import groups_of, nearest
from scgpt_ray.schema import Float32Matrix, Int64Array

MIN_CELLS_PER_LEVEL = 10
"""A level with fewer cells in a label is left out of that label."""

_FOLDS = 5
_PENALTY = 100.0
_NEIGHBORS = 15


@dataclass(frozen=True)
class Probe:
    """Scores of a linear probe on held-out cells; means over labels, weighted by cells.

    Attributes:
        measure: `balanced accuracy`, or `R2` for a numeric factor.
        score: Score of the probe.
        chance: Expected score by chance.
        error: Standard error of the score by chance.
        held_out: What a fold holds out: `cells`, whole `groups` of cells, or `groups where possible` (in some labels).
        n_cells: Number of cells predicted.
        n_labels: Number of their labels.
    """

    measure: str
    score: float
    chance: float
    error: float
    held_out: str
    n_cells: int
    n_labels: int


@dataclass(frozen=True)
class Purity:
    """Share of a cell's 15 nearest neighbours within its label that have its level; mean over cells.

    Attributes:
        share: Observed share.
        expected: Expected share for neighbours drawn at random within the label.
        n_cells: Number of cells.
    """

    share: float
    expected: float
    n_cells: int


def probe_levels(
    vectors_ND: Float32Matrix,
    label_N: Int64Array,
    level_N: Int64Array,
    group_N: Int64Array | None,
    *,
    seed: int,
) -> Probe | None:
    """Predict a factor's level from the embedding within each label, by five-fold cross-validation.

    The probe is a ridge classifier on standardised dimensions, with equal weights of the levels.

    Args:
        vectors_ND: float32 [n, d].
        label_N: int64 [n].
        level_N: int64 [n], levels numbered from 0.
        group_N: int64 [n], groups such as donors: held out as a whole if every training fold then has every level.
        seed: Seed of the folds.

    Returns:
        None if no label has two levels with at least ten cells each.
    """
    parts: list[tuple[int, float, float, float]] = []
    grouped = []
    for cells in _probed_labels(label_N, level_N):
        level = level_N[cells]
        splits = _group_splits(level, group_N[cells], seed) if group_N is not None else None
        grouped.append(splits is not None)
        folds = splits or StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
        model = make_pipeline(StandardScaler(), RidgeClassifier(_PENALTY, class_weight="balanced"))
        predicted = cross_val_predict(model, vectors_ND[cells], level, cv=folds)
        counts = np.unique(level, return_counts=True)[1]
        chance = 1 / len(counts)
        error = chance * np.sqrt(chance * (1 - chance) * (1 / counts).sum())
        parts.append((len(cells), float(recall_score(level, predicted, average="macro")), chance, float(error)))
    if not parts:
        return None
    n, score, chance, error = np.array(parts).T
    return Probe(
        measure="balanced accuracy",
        score=float(np.average(score, weights=n)),
        chance=float(np.average(chance, weights=n)),
        error=float(np.sqrt(((n * error) ** 2).sum()) / n.sum()),
        held_out="groups" if all(grouped) else "groups where possible" if any(grouped) else "cells",
        n_cells=int(n.sum()),
        n_labels=len(parts),
    )


def probe_number(
    vectors_ND: Float32Matrix, label_N: Int64Array, number_N: npt.NDArray[np.float64], *, seed: int
) -> Probe | None:
    """Predict a numeric factor from the embedding within each label, by ridge regression in five folds.

    Returns:
        None if the number varies in no label of at least fifty cells.
    """
    parts: list[tuple[int, float]] = []
    for cells in groups_of(label_N):
        number = number_N[cells]
        if len(cells) < _FOLDS * MIN_CELLS_PER_LEVEL or np.ptp(number) == 0:
            continue
        model = make_pipeline(StandardScaler(), Ridge(_PENALTY))
        folds = KFold(_FOLDS, shuffle=True, random_state=seed)
        predicted = cross_val_predict(model, vectors_ND[cells], number, cv=folds)
        parts.append((len(cells), float(r2_score(number, predicted))))
    if not parts:
        return None
    n, score = np.array(parts).T
    return Probe(
        measure="R2",
        score=float(np.average(score, weights=n)),
        chance=0.0,
        error=float(1 / np.sqrt(n.sum())),
        held_out="cells",
        n_cells=int(n.sum()),
        n_labels=len(parts),
    )


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


def _group_splits(
    level: Int64Array, group: Int64Array, seed: int
) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] | None:
    """Folds that hold out whole groups; None if a training fold would lack a level."""
    groups_per_level = [len(np.unique(group[level == one])) for one in np.unique(level)]
    n_folds = min(_FOLDS, *groups_per_level)
    if n_folds < 2:  # noqa: PLR2004 - a level of one group cannot be held out
        return None
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    splits = list(folds.split(np.zeros(len(level)), level, group))
    n_levels = len(groups_per_level)
    return splits if all(len(np.unique(level[training])) == n_levels for training, _ in splits) else None
