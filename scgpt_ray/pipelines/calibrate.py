"""Calibration of a mapping: reference cells are mapped onto the rest of the reference as if they were queries."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from scgpt_ray.config import MapSettings
from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.index.neighbor_filter import NeighborFilter
from scgpt_ray.index.search import Neighbors
from scgpt_ray.mapping.calibration import Calibration, Targets, calibrate
from scgpt_ray.mapping.calibration_sample import OneGroupLabels, Sample, calibration_sample, one_group_labels
from scgpt_ray.mapping.prediction import PredictionRules
from scgpt_ray.mapping.shift import Position
from scgpt_ray.mapping.votes import CellCounts, LabelVotes, label_votes
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.pipelines.overview import Overview
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.pipelines.stratified_sample import CELLS, count_cells, draw_cells, even_quotas, vectors_of_cells
from scgpt_ray.progress import Stage
from scgpt_ray.schema import JOINID, N_GENES, Float32Matrix

logger = logging.getLogger(__name__)

_SEED = 0  # every mapping uses the same calibration cells


@Stage("calibrate")
def calibrations(
    settings: MapSettings,
    reference: Reference,
    rules: PredictionRules,
    reference_cells: CellCounts,
    *,
    lenient: bool = False,
) -> dict[str, Calibration]:
    """Measure how often the votes on each label column are right.

    Reference cells, as many of each group (such as a donor), are searched like queries, without the neighbours of their
    own group, and so without themselves.

    Args:
        settings: Settings of the mapping.
        reference: The reference.
        rules: Rules of the vote on the query.
        reference_cells: Reference cells by value, for `label_votes`.
        lenient: Leave out a column that cannot be calibrated, with a message.

    Returns:
        Label column -> its calibration; empty without calibrate_by.

    Raises:
        ReferenceSetError: If fewer than three groups have labelled cells, or too many cells have a label that one
            group alone has.
        ConfigError: If the target error cannot be reached.
    """
    group = settings.calibrate_by
    if group is None:
        return {}
    alone: dict[str, OneGroupLabels] = {}
    for column in rules.columns:
        with _errors_of(column, lenient=lenient):
            alone[column] = _one_group(settings, reference, column, group)
    if not alone:
        return {}
    # A copy, with which the actors of its search end: they leave their CPUs to those that embed the query.
    trial = _CalibrationCells.of(settings, replace(reference), rules, reference_cells, group)
    targets = Targets(settings.target_error, settings.false_rejection)
    found: dict[str, Calibration] = {}
    for column in alone:
        with _errors_of(column, lenient=lenient):
            found[column] = calibrate(trial.sample(column), targets, alone[column])
        if column not in found:
            continue
        held = found[column].held_out
        logger.info(
            "%s calibrated with %d cells of %d groups: %.3f right, calibration error %.3f, share kept %.3f",
            column, held.cells, held.groups, held.accuracy, held.after.ece, held.accepted,
        )  # fmt: skip
    return found


@Stage("compare with held-out groups")
def query_positions(
    settings: MapSettings,
    reference: Reference,
    rules: PredictionRules,
    reference_cells: CellCounts,
    calibrated: Mapping[str, Calibration],
    parts: QueryParts,
    overview: Overview,
) -> dict[str, dict[str, Position]]:
    """Where the query lies relative to held-out groups.

    A held-out cell lacks the neighbours of its group, and so lies a little farther from the reference than a query
    does. Each cell of the query is compared without the neighbours of one of the groups, as many cells for each.

    Args:
        settings: Of the mapping.
        reference: Which is mapped onto.
        rules: By which the query's neighbours vote.
        reference_cells: As `label_votes` takes them.
        calibrated: Label column -> its calibration.
        parts: The query.
        overview: Of it; if its sample has more cells than --calibration-cells, some are drawn.

    Returns:
        Calibrated label column -> name of a figure -> position.
    """
    present = overview.rows[overview.sample[N_GENES].to_numpy() > 0]
    if not calibrated or not len(present):
        return {column: {} for column in calibrated}
    group = settings.calibrate_by
    assert group is not None, "calibrated by nothing"
    drawn = np.random.default_rng(_SEED).permutation(len(present))[: settings.calibration_cells]
    some = parts.rows(present[drawn])
    groups = sorted(next(iter(calibrated.values())).held_out.by_group)
    others = [name for name in settings.excluded_columns if name != group]
    left_out = np.resize(np.array(groups, object), len(some)).tolist()
    own = some.select(others).append_column(group, pa.array(left_out, pa.string()))
    _, vectors_QD = vectors_of(some)
    allowed = NeighborFilter.among(settings.neighbor_filter, own, len(vectors_QD))
    found = reference.neighbors(vectors_QD, settings.k, allowed)
    labels = reference.labels(found[0], rules.read)
    positions: dict[str, dict[str, Position]] = {}
    for column, calibration in calibrated.items():
        votes = label_votes(*found, labels, column, rules.vote, reference_cells)
        positions[column] = calibration.shift(votes.names, votes.tally)
    return positions


@contextmanager
def _errors_of(column: str, *, lenient: bool) -> Iterator[None]:
    """Name the label column that an error is about; if lenient, only say what it is."""
    try:
        yield
    except (ConfigError, ReferenceSetError) as error:
        if lenient:
            logger.info("%s is not calibrated: %s", column, error.found)
            return
        remedy = f"{error.remedy}, or leave {column} out of --label-columns"
        raise type(error)(f"{column}: {error.found}", expected=error.expected, remedy=remedy) from None


def _one_group(settings: MapSettings, reference: Reference, column: str, group: str) -> OneGroupLabels:
    counted = count_cells(reference, [column, group], settings.neighbor_filter)
    found = one_group_labels(counted[column], counted[group], counted[CELLS].to_numpy())
    if found.cells:
        logger.warning(
            "%s: %.1f%% of the cells have a label that one %s alone has, which counts as wrong in held-out groups: %s",
            column, 100 * found.share, group, ", ".join(f"{label} {cells}" for label, cells in found.cells.items()),
        )  # fmt: skip
    return found


@dataclass(frozen=True, eq=False)
class _CalibrationCells:
    """Sampled reference cells that are mapped like queries."""

    settings: MapSettings
    reference: Reference
    rules: PredictionRules
    reference_cells: CellCounts
    group: str
    own: pa.Table
    """Labels and groups of the cells."""
    vectors_ND: Float32Matrix

    @classmethod
    def of(
        cls, settings: MapSettings, reference: Reference, rules: PredictionRules, cells: CellCounts, group: str
    ) -> "_CalibrationCells":
        """Draw cells that may be neighbours themselves, as many of each group."""
        columns = list(dict.fromkeys((group, *rules.columns, *settings.excluded_columns)))
        available = reference.cell_counts(group, settings.neighbor_filter)
        named = {name: n for name, n in available.items() if name is not None}
        quotas = even_quotas(named, settings.calibration_cells, _SEED)
        own = draw_cells(reference, columns, quotas, settings.neighbor_filter, _SEED)
        vectors_ND = vectors_of_cells(reference, own[JOINID].to_numpy())
        return cls(settings, reference, rules, cells, group, own, vectors_ND)

    def sample(self, column: str) -> Sample:
        """The votes on a label column, with the cells' own label among the reference and without."""
        withheld = self._votes(self._neighbors((*self.settings.excluded_columns, column)), column)
        votes = self._votes(self._other_groups, column)
        return calibration_sample(votes, self.own[column], self.own[self.group], withheld)

    @cached_property
    def _other_groups(self) -> Neighbors:
        return self._neighbors(self.settings.excluded_columns)

    def _neighbors(self, excluded: Sequence[str]) -> Neighbors:
        """Neighbours that differ from the cell in all of these columns."""
        own = self.own.select(list(excluded))
        allowed = NeighborFilter.among(self.settings.neighbor_filter, own, len(self.vectors_ND))
        return self.reference.neighbors(self.vectors_ND, self.settings.k, allowed)

    def _votes(self, found: Neighbors, column: str) -> LabelVotes:
        labels = self.reference.labels(found[0], list(dict.fromkeys((column, *self.rules.groups))))
        return label_votes(*found, labels, column, self.rules.vote, self.reference_cells)
