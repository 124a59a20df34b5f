"""Calibration of a mapping: sampled reference cells are mapped onto the rest of the reference."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from scgpt_ray.config import MapSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.index.neighbor_filter import NeighborFilter, condition_of
from scgpt_ray.index.search import Neighbors
from scgpt_ray.mapping.calibration import Calibration, Sample, Targets, calibrate, calibration_sample
from scgpt_ray.mapping.prediction import PredictionRules
from scgpt_ray.mapping.votes import CellCounts, LabelVotes, label_votes
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.schema import Float32Matrix

logger = logging.getLogger(__name__)

_SEED = 0  # every mapping uses the same calibration cells


def calibrations(
    settings: MapSettings, reference: Reference, rules: PredictionRules, reference_cells: CellCounts
) -> dict[str, Calibration]:
    """Calibrate the votes on each label column.

    Sampled reference cells are searched like queries, but neighbours of their own group (such as their donor), and so
    the cells themselves, are excluded.

    Args:
        settings: Settings of the mapping.
        reference: The reference.
        rules: Rules of the vote on the query.
        reference_cells: Reference cells by value, for `label_votes`.

    Returns:
        Label column -> its calibration; empty without calibrate_by.

    Raises:
        ReferenceSetError: If fewer than two groups have labelled cells.
        ConfigError: If the target error cannot be reached.
    """
    if settings.calibrate_by is None:
        return {}
    # A copy of the reference starts search actors that end with it, so that their CPUs are free to embed the query.
    cells = _CalibrationCells.of(settings, replace(reference), rules, reference_cells)
    targets = Targets(settings.target_error, settings.false_rejection)
    found: dict[str, Calibration] = {}
    for column in rules.columns:
        try:
            found[column] = calibrate(cells.sample(column, settings.calibrate_by), targets)
        except ConfigError as error:
            remedy = f"{error.remedy}, or leave {column} out of --label-columns"
            raise ConfigError(f"{column}: {error.found}", expected=error.expected, remedy=remedy) from None
        held = found[column].held_out
        logger.info(
            "%s calibrated with %d cells of %d groups: %.3f right, calibration error %.3f, share kept %.3f",
            column, held.cells, held.groups, held.accuracy, held.after.ece, held.accepted,
        )  # fmt: skip
    return found


@dataclass(frozen=True, eq=False)
class _CalibrationCells:
    """Sampled reference cells that are mapped like queries."""

    settings: MapSettings
    reference: Reference
    rules: PredictionRules
    reference_cells: CellCounts
    own: pa.Table
    """Labels and groups of the cells."""
    vectors_ND: Float32Matrix

    @classmethod
    def of(
        cls, settings: MapSettings, reference: Reference, rules: PredictionRules, reference_cells: CellCounts
    ) -> "_CalibrationCells":
        """Sample cells that meet --neighbor-filter."""
        needed = dict.fromkeys((*rules.columns, *settings.excluded_columns))
        columns = list(reference.index.label_columns if settings.neighbor_filter else needed)
        _, vectors_ND, own = reference.sample(settings.calibration_cells, _SEED, columns)
        condition = condition_of(settings.neighbor_filter, own.schema)
        if condition is not None:
            met_N = condition.mask(own)
            own, vectors_ND = own.filter(pa.array(met_N)), vectors_ND[met_N]
        return cls(settings, reference, rules, reference_cells, own, vectors_ND)

    def sample(self, column: str, group: str) -> Sample:
        """The votes on a label column, and the votes if cells of the true label are excluded as well."""
        withheld = self._votes(self._neighbors((*self.settings.excluded_columns, column)), column)
        return calibration_sample(self._votes(self._other_groups, column), self.own[column], self.own[group], withheld)

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
