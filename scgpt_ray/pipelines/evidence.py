"""What speaks for or against the labels of a query: fitness of the index, place of the cells, markers in counts."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.components import log1p_cp10k
from scgpt_ray.evaluation.markers import MarkedLabel, marked_labels
from scgpt_ray.evaluation.sample import strata_of, stratified_sample
from scgpt_ray.index.description import MARKERS
from scgpt_ray.mapping.placement import Placement, placement
from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.pipelines.atlas_counts import AtlasCounts, shared_tokens, why_not
from scgpt_ray.pipelines.overview import Overview
from scgpt_ray.pipelines.prediction_table import texts
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.records import Fitness, LabelFitness
from scgpt_ray.schema import JOINID, Int64Array

logger = logging.getLogger(__name__)

_CELLS = 3000
"""Query cells whose counts are read for markers, as many of each combination of labels as it has among all cells."""
_SEED = 0


@dataclass(frozen=True, eq=False)
class Evidence:
    """What speaks for or against the labels.

    Attributes:
        fitness: Of the index.
        columns: Label columns that are transferred.
        trained: Why its figures are optimistic; None if they are not, as far as is known.
        placement: Of the query among the distances of the reference; None where nothing can be compared.
        vocabulary: Why true labels can hardly be compared with those of the reference; None if they can, or without.
        markers: Label column -> its labels that cells were given, or why their markers were not looked at.
    """

    fitness: Fitness
    columns: Sequence[str]
    trained: str | None
    placement: Placement | None
    vocabulary: str | None
    markers: Mapping[str, list[MarkedLabel] | str]

    def marked(self, column: str) -> list[MarkedLabel]:
        """Labels of a column whose markers were looked at."""
        found = self.markers[column]
        return [] if isinstance(found, str) else found

    def lacking(self, column: str) -> list[MarkedLabel]:
        """Labels of a column whose cells lack its markers."""
        return [marked for marked in self.marked(column) if marked.is_absent]

    def expected(self) -> dict[str, str]:
        """Label column -> what to expect of its labels."""
        texts = {}
        for column in self.columns:
            found = self.fitness.columns.get(column, "it was not taken for a column of labels")
            texts[column] = found.text() if isinstance(found, LabelFitness) else f"not examined, {found}"
            if self.trained and isinstance(found, LabelFitness):
                texts[column] += f". Optimistic: {self.trained}"
        return texts

    def warnings(self) -> list[str]:
        """What a reader must know before the labels are used."""
        found = {column: self.fitness.columns.get(column) for column in self.columns}
        lost = [name for name, said in found.items() if isinstance(said, LabelFitness) and said.verdict != "fit"]
        texts = [f"{column}: {self.expected()[column]}" for column in lost]
        if self.placement is not None and self.placement.is_elsewhere:
            texts.append(self.placement.text())
        if self.vocabulary is not None:
            texts.append(self.vocabulary)
        return [*texts, *(f"{column}: {marked.text()}" for column in self.columns for marked in self.lacking(column))]

    def log(self) -> None:
        """Say it: warnings as such."""
        warned = self.warnings()
        expected = (f"{column}: {text}" for column, text in self.expected().items())
        for text in dict.fromkeys((*expected, *warned)):
            logger.log(logging.WARNING if text in warned else logging.INFO, text)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        found = {column: self.fitness.columns.get(column) for column in self.columns}
        return {
            "fitness": {
                column: {"verdict": said.verdict, **asdict(said)} if isinstance(said, LabelFitness) else said
                for column, said in found.items()
            },
            "placement": asdict(self.placement) if self.placement else None,
            "markers": {
                column: found if isinstance(found, str) else {marked.label: marked.to_dict() for marked in found}
                for column, found in self.markers.items()
            },
        }


def gather(
    reference: Reference,
    fitness: Fitness,
    columns: Sequence[str],
    parts: QueryParts,
    overview: Overview,
    k: int,
    trained: str | None,
    vocabulary: str | None,
) -> Evidence:
    """Compare a query with the reference, and look for markers in its counts.

    Args:
        reference: Which was mapped onto.
        fitness: Of the index.
        columns: Label columns.
        parts: The query and its predictions.
        overview: Of both.
        k: Neighbours that voted.
        trained: As `training_overlap` says.
        vocabulary: As `vocabulary_gap` says of true labels.
    """
    return Evidence(
        fitness,
        columns,
        trained,
        placement(fitness.distances, k, overview.far_by_sample()),
        vocabulary,
        _markers(reference, fitness, parts, overview),
    )


def _markers(
    reference: Reference, fitness: Fitness, parts: QueryParts, overview: Overview
) -> dict[str, list[MarkedLabel] | str]:
    """The markers of all label columns, in one sample of the cells that have a label in any of them."""
    columns = list(overview.labels)
    try:
        markers = pq.read_table(io.BytesIO(reference.folder.read(MARKERS)))
    except pa.ArrowInvalid as error:
        return dict.fromkeys(columns, f"{reference.folder.where(MARKERS)} is damaged ({error})")
    chosen = _sampled(overview.sample.select(columns))
    try:
        atlas = AtlasCounts.at(parts.embedded.uri, whole=True)
        tokens_G = shared_tokens([atlas])
        joinids = parts.rows(overview.rows[chosen], [JOINID])[JOINID].to_numpy()
        blocks = list(atlas.counts(joinids, tokens_G)) if len(chosen) else []
    except (InputError, OSError) as error:
        return dict.fromkeys(columns, why_not(error))
    logs_NG = log1p_cp10k(sparse.vstack([sparse.csr_matrix((0, len(tokens_G))), *blocks], format="csr"))

    def looked_at(column: str) -> list[MarkedLabel] | str:
        if column not in fitness.columns:
            return f"the index did not take {column} for a column of labels"
        of_column = markers.filter(pc.equal(markers["column"], column)).to_pylist()
        if not of_column:
            return f"the index has no markers of {column}: no counts of the reference were read when it was built"
        labels_N = texts(overview.sample[column].take(pa.array(chosen)))
        named = labels_N != UNKNOWN
        if not named.any():
            return f"no query cell has a {column}"
        return marked_labels(of_column, logs_NG[named], labels_N[named], tokens_G)

    return {column: looked_at(column) for column in columns}


def _sampled(labels: pa.Table) -> Int64Array:
    """Rows of cells that have a label in any column, stratified by the combination of their labels."""
    codes = [column.combine_chunks().indices.to_numpy() for column in labels.columns]
    is_named = [pc.not_equal(column, UNKNOWN).to_numpy() for column in labels.columns]
    named = np.flatnonzero(np.any(is_named, axis=0))
    strata = strata_of(*(codes_Q[named] for codes_Q in codes))
    return named[stratified_sample(strata, _CELLS, seed=_SEED)]
