"""Calibration of a mapping: reference cells are mapped onto the rest of it as if they were queries."""

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

_SEED = 0  # of the sample, the same for every mapping


def calibrations(
    settings: MapSettings, reference: Reference, rules: PredictionRules, reference_cells: CellCounts
) -> dict[str, Calibration]:
    """Learn how often the votes on each label column are right.

    Sampled reference cells are searched like queries, without the neighbours of their own group (such as a donor), and
    so without themselves.

    Args:
        settings: Of the mapping.
        reference: Which is mapped onto.
        rules: By which the query's neighbours vote.
        reference_cells: As `label_votes` takes them.

    Returns:
        Label column -> its calibration; none without calibrate_by.

    Raises:
        ReferenceSetError: If fewer than two groups have labelled cells.
        ConfigError: If the target error cannot be reached.
    """
    if settings.calibrate_by is None:
        return {}
    # A copy, with which the actors of its search end: they leave their CPUs to those that embed the query.
    trial = _Trial.of(settings, replace(reference), rules, reference_cells)
    targets = Targets(settings.target_error, settings.false_rejection)
    found: dict[str, Calibration] = {}
    for column in rules.columns:
        try:
            found[column] = calibrate(trial.sample(column, settings.calibrate_by), targets)
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
class _Trial:
    """Cells of the reference in the place of queries."""

    settings: MapSettings
    reference: Reference
    rules: PredictionRules
    reference_cells: CellCounts
    own: pa.Table
    """Their labels and groups."""
    vectors_ND: Float32Matrix

    @classmethod
    def of(
        cls, settings: MapSettings, reference: Reference, rules: PredictionRules, reference_cells: CellCounts
    ) -> "_Trial":
        """Draw cells that may be neighbours themselves."""
        needed = dict.fromkeys((*rules.columns, *settings.left_out))
        columns = list(reference.index.label_columns if settings.neighbor_filter else needed)
        _, vectors_ND, own = reference.sample(settings.calibration_cells, _SEED, columns)
        condition = condition_of(settings.neighbor_filter, own.schema)
        if condition is not None:
            met_N = condition.mask(own)
            own, vectors_ND = own.filter(pa.array(met_N)), vectors_ND[met_N]
        return cls(settings, reference, rules, reference_cells, own, vectors_ND)

    def sample(self, column: str, group: str) -> Sample:
        """The votes on a label column, with the cells' own label among the reference and without."""
        withheld = self._votes(self._neighbors((*self.settings.left_out, column)), column)
        return calibration_sample(self._votes(self._elsewhere, column), self.own[column], self.own[group], withheld)

    @cached_property
    def _elsewhere(self) -> Neighbors:
        return self._neighbors(self.settings.left_out)

    def _neighbors(self, unlike: Sequence[str]) -> Neighbors:
        """Neighbours that share none of these columns' values with the cell."""
        allowed = NeighborFilter.among(
            self.settings.neighbor_filter, self.own.select(list(unlike)), len(self.vectors_ND)
        )
        return self.reference.neighbors(self.vectors_ND, self.settings.k, allowed)

    def _votes(self, found: Neighbors, column: str) -> LabelVotes:
        labels = self.reference.labels(found[0], list(dict.fromkeys((column, *self.rules.groups))))
        return label_votes(*found, labels, column, self.rules.vote, self.reference_cells)
