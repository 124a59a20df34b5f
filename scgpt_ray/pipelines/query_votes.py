"""The votes on a query: blocks of its cells are searched together, and committed part by part.

Shapes: Q cells with an embedding, K neighbours, D width.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from scgpt_ray import __version__
from scgpt_ray.config import MapSettings
from scgpt_ray.config.map import CalibrationSettings, TermSettings, VoteSettings
from scgpt_ray.index.neighbor_filter import NeighborFilter
from scgpt_ray.index.search import NONE
from scgpt_ray.mapping.calibration import Calibration
from scgpt_ray.mapping.ontology import CellOntology
from scgpt_ray.mapping.prediction import PredictionRules, predict
from scgpt_ray.mapping.votes import CellCounts
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.pipelines.mapping_result import predictions_of
from scgpt_ray.pipelines.progress import Progress
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.schema import EMBEDDING

logger = logging.getLogger(__name__)

_CELLS_AT_ONCE = 65_536
"""The label tables of the whole reference are read once per block; its vectors take 128 MiB at width 512."""

_UNSEEN = {"truth_column", "truth_map", "baseline_values"}
"""Options that change no prediction."""


@dataclass(frozen=True, eq=False)
class QueryVotes:
    """How neighbours in a reference vote on query cells.

    Attributes:
        settings: Of the mapping.
        reference: Which is searched.
        rules: Of the vote.
        reference_cells: Reference cells by value, as `predict` takes them.
        calibrations: Label column -> its calibration.
        ontology: For the term column, if there is one.
    """

    settings: MapSettings
    reference: Reference
    rules: PredictionRules
    reference_cells: CellCounts
    calibrations: Mapping[str, Calibration]
    ontology: CellOntology | None

    def request(self) -> dict[str, Any]:
        """What decides the predictions of given embeddings, as JSON values."""
        asked = {*VoteSettings.model_fields, *CalibrationSettings.model_fields, *TermSettings.model_fields} - _UNSEEN
        return {
            "index": self.reference.index.model_dump(mode="json", exclude={"license", "embeddings", "appended"}),
            "settings": self.settings.model_dump(mode="json", include=asked),
            "obs_columns": list(self.settings.obs_columns),
            "calibrations": {column: asdict(found) for column, found in self.calibrations.items()},
            "version": __version__,
        }

    def commit(self, parts: QueryParts) -> None:
        """Make the predictions that are not committed yet."""
        cells = parts.manifest.parts
        left = parts.left()
        n_left = sum(cells[name] for name in left)
        short = 0
        with Progress(sum(cells.values()), sum(cells.values()) - n_left, "map") as progress:
            for names in _blocks(cells, left):
                short += self._commit(parts, names)
                progress.add({"cells": sum(cells[name] for name in names)})
        if short:
            logger.warning("%d cells have fewer than %d allowed neighbours", short, self.settings.k)

    def _commit(self, parts: QueryParts, names: Sequence[str]) -> int:
        """Make the predictions of some parts; returns how many cells have too few neighbours."""
        tables = [parts.embeddings(name) for name in names]
        present = pa.concat_tables(
            table.filter(table[EMBEDDING].is_valid()).unify_dictionaries() for table in tables
        ).unify_dictionaries()
        _, vectors_QD = vectors_of(present)
        own = present.select(list(dict.fromkeys(self.settings.exclude_same)))
        allowed = NeighborFilter.among(self.settings.neighbor_filter, own, len(vectors_QD))
        ids_QK, scores_QK = self.reference.neighbors(vectors_QD, self.settings.k, allowed)
        labels = self.reference.labels(ids_QK, self.rules.read)
        start = 0
        for name, table in zip(names, tables, strict=True):
            rows = slice(start, start + len(table) - table[EMBEDDING].null_count)
            predicted = predict(
                ids_QK[rows],
                scores_QK[rows],
                labels,
                self.rules,
                reference_cells=self.reference_cells,
                calibrations=self.calibrations,
                ontology=self.ontology,
            )
            committed = predictions_of(table, predicted.table, self.rules.columns)
            parts.write(name, committed, predicted.unknown_terms)
            start = rows.stop
        return int((ids_QK[:, -1] == NONE).sum())


def _blocks(cells: Mapping[str, int], names: Sequence[str]) -> Iterator[list[str]]:
    """Names of parts, as many at once as have `_CELLS_AT_ONCE` cells together, at least one."""
    block: list[str] = []
    for name in names:
        if block and sum(cells[other] for other in (*block, name)) > _CELLS_AT_ONCE:
            yield block
            block = []
        block.append(name)
    if block:
        yield block
