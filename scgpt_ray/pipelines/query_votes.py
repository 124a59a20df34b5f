"""The votes on a query: workers that hold the shards open read a part, search, vote and commit.

The driver holds no vectors, neighbours or predictions, only how many cells are done.

Shapes: Q cells with an embedding, K neighbours, D width.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from scgpt_ray import __version__
from scgpt_ray.config import ComputeSettings, MapSettings
from scgpt_ray.config.map import CalibrationSettings, TermSettings, VoteSettings
from scgpt_ray.errors import WorkerError
from scgpt_ray.index.neighbor_filter import NeighborFilter
from scgpt_ray.index.search import NONE, set_threads
from scgpt_ray.mapping.calibration import Calibration
from scgpt_ray.mapping.ontology import CellOntology
from scgpt_ray.mapping.prediction import PredictionRules, predict
from scgpt_ray.mapping.votes import CellCounts
from scgpt_ray.parts.parts import PARTS, part_name, vectors_of
from scgpt_ray.pipelines.executor import Executor, Failure, Stages
from scgpt_ray.pipelines.prediction_table import predictions_of
from scgpt_ray.pipelines.progress import Progress
from scgpt_ray.pipelines.query_parts import CommitPredictions, QueryParts, ReadQuery
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.schema import EMBEDDING

logger = logging.getLogger(__name__)

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
    """

    settings: MapSettings
    reference: Reference
    rules: PredictionRules
    reference_cells: CellCounts
    calibrations: Mapping[str, Calibration]

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

    def commit(self, parts: QueryParts, executor: Executor) -> dict[str, int]:
        """Make the predictions that are not committed yet.

        Returns:
            Terms that the Cell Ontology lacks -> neighbours of the whole query that voted for them.

        Raises:
            WorkerError: If those of some parts cannot be made.
        """
        todo, terms = parts.left()
        total, n_left = parts.manifest.n_cells, sum(partition.n_cells for partition in todo)
        pool = executor.pool(ComputeSettings(device="cpu", actors=self.settings.actors))
        read, commit = ReadQuery(parts.embedded.folder(PARTS)), CommitPredictions(parts.predictions)
        stages = Stages(read, VotePartition, (self.alone(), pool.threads), commit)
        short, failed = 0, []
        with Progress("map", total, total - n_left) as progress:
            for receipt in executor.stream(todo, stages, pool) if todo else ():
                if isinstance(receipt, Failure):
                    failed.append(receipt)
                    continue
                short += receipt["short"]
                terms.update(receipt["unknown_terms"])
                progress.add({"cells": receipt["cells"]})
        if short:
            logger.warning("%d cells have fewer than %d allowed neighbours", short, self.settings.k)
        if failed:
            raise WorkerError(
                f"{len(failed)} of {len(parts.names)} parts of the query have no predictions; the first: "
                f"{part_name(failed[0].partition.number)} {failed[0].reason}; map again tries these parts again"
            )
        return dict(terms)

    def alone(self) -> "QueryVotes":
        """The same votes for another process: nothing is open, and the shards are searched there."""
        return replace(self, reference=replace(self.reference, executor=None, actors=0))


class VotePartition:
    """EMBEDDINGS of some query cells -> their predictions, by a worker that holds the shards open.

    Args:
        votes: How neighbours vote, as `QueryVotes.alone` gives it.
        threads: CPU threads of the search.
    """

    def __init__(self, votes: QueryVotes, threads: int) -> None:
        self._votes, self._threads = votes, threads
        self._ontology = CellOntology() if votes.rules.term_column else None
        self._turn = threading.Lock()  # an actor computes in several threads

    def __call__(self, queries: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """Predict; the figures are `short` (cells with too few neighbours) and `unknown_terms`."""
        with self._turn:
            set_threads(self._threads)
            return self._predicted(queries)

    def _predicted(self, queries: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        votes, settings = self._votes, self._votes.settings
        present = queries.filter(queries[EMBEDDING].is_valid())
        _, vectors_QD = vectors_of(present)
        own = present.select(list(dict.fromkeys(settings.exclude_same)))
        allowed = NeighborFilter.among(settings.neighbor_filter, own, len(vectors_QD))
        ids_QK, scores_QK = votes.reference.neighbors(vectors_QD, settings.k, allowed)
        predicted = predict(
            ids_QK,
            scores_QK,
            votes.reference.labels(ids_QK, votes.rules.read),
            votes.rules,
            reference_cells=votes.reference_cells,
            calibrations=votes.calibrations,
            ontology=self._ontology,
        )
        figures = {"short": int((ids_QK[:, -1] == NONE).sum()), "unknown_terms": predicted.unknown_terms}
        return predictions_of(queries, predicted.table, votes.rules.columns), figures
