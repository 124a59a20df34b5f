"""Cells in memory -> labels in memory: the steps of `map` without files, calibration and report."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from scgpt_ray.config import EmbedSettings, MapSettings
from scgpt_ray.identity import require_same_model
from scgpt_ray.pipelines.executor import Executor
from scgpt_ray.pipelines.labelled_cells import index_provenance
from scgpt_ray.pipelines.map import embed_request, prediction_rules, reference_cells
from scgpt_ray.pipelines.map_defaults import require_fitness, with_defaults
from scgpt_ray.pipelines.query_votes import QueryVotes, VotePartition
from scgpt_ray.pipelines.reference import Reference

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class InMemoryMapping:
    """A mapping whose request was checked against the index.

    Attributes:
        votes: How the reference votes.
        threads: CPU threads of the search.
    """

    votes: QueryVotes
    threads: int

    @classmethod
    def of(cls, settings: MapSettings, executor: Executor) -> "InMemoryMapping":
        """Check a request; its query and output are not used.

        Raises:
            InputError: If the index or an option cannot be used.
        """
        reference = Reference.at(settings.index).on(executor)
        settings = with_defaults(settings, reference.index, require_fitness(reference))
        rules = prediction_rules(settings, reference.index)
        reference.require(settings.k, settings.exclude_same, settings.neighbor_filter)
        votes = QueryVotes(settings, reference, rules, reference_cells(settings, reference, rules), {})
        return cls(votes, executor.pool(settings).threads)

    @property
    def columns(self) -> tuple[str, ...]:
        """Label columns."""
        return self.votes.rules.columns

    @property
    def precision(self) -> str:
        """Precision of the reference."""
        return str(self.votes.reference.index.fingerprint.model["precision"])

    def embed_settings(self) -> EmbedSettings:
        """Settings that embed the query as the reference was.

        Raises:
            ReferenceSetError: If the checkpoint is another.
        """
        return embed_request(self.votes.settings, self.votes.reference.index, list(self.columns))

    def require_model(self, model: Mapping[str, Any]) -> None:
        """Require embeddings of the same model, in any precision.

        Raises:
            ReferenceSetError: If they are of another.
        """
        settings, space = self.votes.settings, self.votes.reference.index.fingerprint.model
        require_same_model("the embeddings", {**model, "precision": space["precision"]}, settings.index, space)

    def predictions(self, queries: pa.Table) -> pa.Table:
        """Label EMBEDDINGS, which carry the columns of `exclude_same`; as `predictions_of` gives them."""
        predicted, figures = VotePartition(self.votes, self.threads)(queries)
        if figures["short"]:
            logger.warning("%d cells have fewer than %d allowed neighbours", figures["short"], self.votes.settings.k)
        return predicted

    def provenance(self) -> dict[str, Any]:
        """What identifies the index and the votes."""
        return index_provenance(self.votes.settings, self.votes.reference.index)
