"""How well an index labels cells: cells that it holds are mapped onto it, without the others of their group.

Shapes: N examined cells, K neighbours, S cells of the baseline's reference.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.components import fit_components
from scgpt_ray.evaluation.labels.baseline import N_COMPONENTS, majority, nearest_labels
from scgpt_ray.evaluation.labels.metrics import has_truth, score_labels
from scgpt_ray.evaluation.markers import SCHEMA, find_markers
from scgpt_ray.index.card import MOST_VALUES
from scgpt_ray.index.description import MARKERS
from scgpt_ray.index.neighbor_filter import NeighborFilter
from scgpt_ray.index.search import NONE, Neighbors
from scgpt_ray.mapping.calibration_sample import LEAST_GROUPS, MOST_IN_ONE_GROUP, OneGroupLabels, count_groups
from scgpt_ray.mapping.label_columns import is_identifier, separators
from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.mapping.votes import CountOfValue, VoteRules, label_votes
from scgpt_ray.pipelines.atlas_counts import require_variety, why_not
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.pipelines.reference_sample import CountedSample, counted_sample
from scgpt_ray.pipelines.stratified_sample import CELLS, count_cells
from scgpt_ray.records import RANDOM_FIFTHS, Agreement, Fitness, LabelFitness, NeighborDistances
from scgpt_ray.schema import JOINID, Float32Matrix, Int64Array

logger = logging.getLogger(__name__)

_CELLS = 2000
"""Examined cells: an accuracy of 0.9 is then known to 0.7 % (a standard error)."""
_VOTERS = 10  # as `map` has by default
_RANKS = 30  # neighbours to which distances are kept
_FOLDS = 5
_FAR = 0.99  # quantile
_SEED = 0

_Texts = npt.NDArray[np.object_]


def write_fitness(reference: Reference, held_out: str | None) -> None:
    """Examine an index, and write its fitness and its table of markers, without rows where no counts are read.

    Args:
        reference: The index.
        held_out: As `examine`.
    """
    fitness, counted = examine(reference, held_out)
    tables = [SCHEMA.empty_table()]
    if isinstance(counted, CountedSample) and counted.are_counts:
        tables += [
            find_markers(counted.voters_SG, counted.voters[column], column, counted.tokens_G, counted.names_G)
            for column in fitness.columns
        ]
    with reference.folder.staged(MARKERS) as path:
        pq.write_table(pa.concat_tables(tables), path, compression="zstd")
    fitness.write(reference.folder)


def examine(reference: Reference, held_out: str | None) -> tuple[Fitness, CountedSample | str]:
    """Map reference cells as if they were new.

    Args:
        reference: The reference.
        held_out: Column whose groups are held out; None for the first that separates samples which share labels, or
            random fifths if no column does.

    Returns:
        What was found, and the counts that PCA + kNN was made from, or why they were not read.
    """
    start = time.perf_counter()
    counts = _label_counts(reference)
    names = [held_out] if held_out else separators(reference.index.label_columns)
    columns = list(reference.index.label_columns)
    ids_N, vectors_ND, own = reference.sample(_CELLS, _SEED, columns)
    counted = _counted(reference, ids_N, columns, counts)
    trial = _Trial(reference, ids_N, vectors_ND, own, counted)
    groups = {column: _groups(reference, column, names, chosen=held_out is not None) for column in counts}
    found = {column: trial.fitness(column, counts[column], *groups[column]) for column in counts}
    first = next((group for group, _ in groups.values() if group), None) or (names[0] if held_out else None)
    fitness = Fitness(columns=found, distances=trial.distances(first), calibrate_by=_calibrated_by(groups))
    logger.info("%d cells examined in %.1f s", len(ids_N), time.perf_counter() - start)
    for column, said in found.items():
        unfit = isinstance(said, LabelFitness) and said.verdict != "fit"
        text = said.text() if isinstance(said, LabelFitness) else f"not examined, {said}"
        logger.log(logging.WARNING if unfit else logging.INFO, "%s: %s", column, text)
    return fitness, counted


def _counted(
    reference: Reference, ids_N: Int64Array, columns: list[str], counts: Mapping[str, CountOfValue]
) -> CountedSample | str:
    if not counts:
        return "no column has labels"
    try:
        counted = counted_sample(reference, ids_N, columns, counts)
        require_variety(counted.voters_SG)
    except (InputError, OSError) as error:
        return why_not(error)
    return counted


def _label_counts(reference: Reference) -> dict[str, CountOfValue]:
    """Label-like column -> label -> cells: neither numbers nor identifiers, by name and by their number of values."""
    with reference.folder.open(reference.index.shards[0].labels) as stream:
        schema = pq.read_schema(stream)
    found: dict[str, CountOfValue] = {}
    for column in reference.index.label_columns:
        if is_identifier(column) or pa.types.is_floating(schema.field(column).type):
            continue
        counted = reference.listed_counts(column, MOST_VALUES)
        labels: CountOfValue = {name: n for name, n in (counted or {}).items() if name is not None}
        if 1 < len(labels) <= sum(labels.values()) / 2:
            found[column] = labels
    return found


def _groups(
    reference: Reference, column: str, names: list[str], *, chosen: bool
) -> tuple[str | None, OneGroupLabels | None]:
    """The first of some columns with groups that share the labels of a column, and which labels they do not share."""
    for name in names:
        if name != column:
            counted = count_cells(reference, [column, name], None)
            found = count_groups(counted[column], counted[name], counted[CELLS].to_numpy())
            if found.groups > 1 and (chosen or found.share <= MOST_IN_ONE_GROUP):
                return name, found
    return None, None


def _calibrated_by(groups: Mapping[str, tuple[str | None, OneGroupLabels | None]]) -> str | None:
    """The column that can calibrate the first label column."""
    for name, found in groups.values():
        if found is not None and found.groups >= LEAST_GROUPS and found.share <= MOST_IN_ONE_GROUP:
            return name
        break
    return None


@dataclass(frozen=True, eq=False)
class _Trial:
    """The examined cells, and their neighbours in other groups.

    Attributes:
        reference: The reference.
        ids_N: Their soma_joinids.
        vectors_ND: Their vectors.
        own: Their labels.
        counted: Their counts, with those of other cells, or why they were not read.
    """

    reference: Reference
    ids_N: Int64Array
    vectors_ND: Float32Matrix
    own: pa.Table
    counted: CountedSample | str
    _found: dict[str | None, Neighbors] = field(default_factory=dict)
    _components: list[Any] = field(default_factory=list)

    def fitness(
        self, column: str, cells: CountOfValue, group: str | None, alone: OneGroupLabels | None
    ) -> LabelFitness | str:
        """Examine a label column; or why it was not."""
        truth_N = _texts(self.own[column])
        rows = np.flatnonzero(has_truth(truth_N) & self._has_group(group))
        if not len(rows):
            return "no examined cell has a label"
        ids_NK, scores_NK = self._neighbors(group)
        ids_NK, scores_NK = ids_NK[rows, :_VOTERS], scores_NK[rows, :_VOTERS]
        labels = self.reference.labels(ids_NK, [column])
        votes = label_votes(ids_NK, scores_NK, labels, column, VoteRules(), {})
        truth, voted = truth_N[rows], np.array([label or UNKNOWN for label in votes.top_labels], object)
        scores = score_labels(truth, voted, votes.tally.share, [name for name in cells if name is not None])
        right = voted == truth

        def agreement(labelled: _Texts) -> Agreement:
            of_other, is_right = score_labels(truth, labelled, np.zeros(len(truth)), set()), labelled == truth
            alone_right, alone_wrong = (int(both.sum()) for both in (is_right & ~right, right & ~is_right))
            return Agreement(of_other.accuracy, of_other.macro_f1, alone_right, alone_wrong)

        by_counts = self._by_counts(column, group, rows)
        return LabelFitness(
            cells=len(rows),
            labels=len(cells),
            held_out=group or RANDOM_FIFTHS,
            one_group=alone.share if alone else 0.0,
            accuracy=scores.accuracy,
            macro_f1=scores.macro_f1,
            majority=agreement(majority(cells, len(rows))[0]),
            baseline=None if by_counts is None else agreement(by_counts),
            baseline_cells=self.counted if isinstance(self.counted, str) else self.counted.text(),
        )

    def distances(self, group: str | None) -> NeighborDistances:
        """How far the neighbours of examined cells are, by their rank."""
        _, scores_NK = self._neighbors(group)
        distance_NK = np.where(np.isfinite(scores_NK), 1 - scores_NK.astype(np.float64), np.nan)[self._has_group(group)]
        distance_NK = distance_NK[:, ~np.isnan(distance_NK).all(axis=0)]
        median, far = np.nanquantile(distance_NK, [0.5, _FAR], axis=0).round(6) if distance_NK.size else ((), ())
        return NeighborDistances(group or RANDOM_FIFTHS, tuple(map(float, median)), tuple(map(float, far)))

    def _has_group(self, group: str | None) -> npt.NDArray[np.bool_]:
        return np.ones(len(self.ids_N), bool) if group is None else has_truth(_texts(self.own[group]))

    def _neighbors(self, group: str | None) -> Neighbors:
        """Neighbours in other groups, nearest first."""
        if group not in self._found:
            if group is None:
                found = self.reference.neighbors(self.vectors_ND, 2 * _RANKS)
                self._found[group] = _of_other_folds(found, self.ids_N)
            else:
                allowed = NeighborFilter.among(None, self.own.select([group]), len(self.ids_N))
                self._found[group] = self.reference.neighbors(self.vectors_ND, _RANKS, allowed)
        return self._found[group]

    def _by_counts(self, column: str, group: str | None, rows: Int64Array) -> _Texts | None:
        """Labels of some of the cells by PCA + kNN, of voters in other groups; None without counts."""
        if isinstance(self.counted, str):
            return None
        if not self._components:
            components, voters_SC = fit_components(self.counted.voters_SG, N_COMPONENTS, seed=_SEED)
            self._components.extend((voters_SC, components.transform(self.counted.queries_NG)))
        voters_SC, queries_NC = self._components
        voters = self.counted.voters
        labels_S, own_S = _texts(voters[column]), _groups_of(voters, group)
        own_N, voting_S = _groups_of(self.own, group)[rows], has_truth(labels_S)
        others = [(np.flatnonzero(own_N == name), voting_S & (own_S != name)) for name in sorted(set(own_N))]
        return nearest_labels(voters_SC, labels_S, queries_NC[rows], _VOTERS, others)[0]


def _groups_of(cells: pa.Table, group: str | None) -> _Texts:
    return _texts(cells[group]) if group else _folds(cells[JOINID].to_numpy()).astype(str).astype(object)


def _of_other_folds(found: Neighbors, ids_N: Int64Array) -> Neighbors:
    """Neighbours that are not in a cell's own random fifth, moved to the front."""
    ids_NK, scores_NK = found
    allowed_NK = (ids_NK != NONE) & (_folds(ids_NK) != _folds(ids_N)[:, None])
    order_NK = np.argsort(~allowed_NK, axis=1, kind="stable")[:, :_RANKS]
    others_NK = np.where(allowed_NK, ids_NK, NONE), np.where(allowed_NK, scores_NK, -np.inf)
    ids, scores = (np.take_along_axis(values, order_NK, axis=1) for values in others_NK)
    return ids, scores.astype(np.float32)


def _folds(ids: Int64Array) -> Int64Array:
    """A number from 0 to 4 for each soma_joinid, as if by chance: the bits of a multiplication (Knuth's hash)."""
    mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((mixed >> np.uint64(33)) % np.uint64(_FOLDS), np.int64)


def _texts(values: pa.ChunkedArray) -> _Texts:
    return np.array(values.cast(pa.string()).to_pylist(), object)
