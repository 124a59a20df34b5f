"""The table of predictions: for each query cell its labels, their confidence, and its neighbours.

Shapes: Q queries, K neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.mapping.calibration import Calibration
from scgpt_ray.mapping.label_table import NO_NEIGHBOR
from scgpt_ray.mapping.ontology import Ontology, RolledUp, roll_up
from scgpt_ray.mapping.rejection import NO_NEIGHBOR_VOTED, TOO_FAR
from scgpt_ray.mapping.votes import CellCounts, LabelVotes, VoteRules, label_votes
from scgpt_ray.schema import NEIGHBOR, SCORE, Float32Matrix, Int64Array, ragged_array

UNKNOWN = "Unknown"
"""The label of a cell that gets none."""

SUFFIXES = (
    "_confidence", "_probability", "_voted", "_runner_up", "_runner_up_share", "_unknown",
    "_rolled_up", "_rolled_up_label", "_rolled_up_share",
)  # fmt: skip
"""Suffixes of the columns that `predict` may add per label column."""


@dataclass(frozen=True)
class PredictionRules:
    """What is predicted, and how."""

    columns: tuple[str, ...]
    """Label columns."""
    vote: VoteRules
    """How neighbours vote on each of them."""
    term_column: str | None = None
    """The one among the columns whose ontology terms are rolled up."""
    term_share: float = 0.5
    """Share of the votes that a term needs, with those for terms below it."""

    @property
    def read(self) -> list[str]:
        """Columns of the label table that are looked at."""
        return list(dict.fromkeys((*self.columns, *self.groups)))

    @property
    def groups(self) -> tuple[str, ...]:
        """The column that votes are balanced by, if any; its values are counted over the reference."""
        return () if self.vote.balance_by is None else (self.vote.balance_by,)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Labels of query cells."""

    table: pa.Table
    """As `predict` gives it."""
    unknown_terms: dict[str, int]
    """Terms of the term column that the ontology lacks -> neighbours that voted for them."""


def predict(
    neighbor_ids_QK: Int64Array,
    scores_QK: Float32Matrix,
    labels: pa.Table,
    rules: PredictionRules,
    *,
    reference_cells: CellCounts | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    ontology: Ontology | None = None,
) -> Predictions:
    """Vote on the labels of query cells, reject unsure ones, and roll up ontology terms.

    Args:
        neighbor_ids_QK: int64 [Q, K], nearest first, -1 where there is no neighbour.
        scores_QK: float32 [Q, K].
        labels: soma_joinid, the label columns, and the column that votes are balanced by; each neighbour once.
        rules: What is predicted, and how.
        reference_cells: Column -> value -> reference cells; needed where votes are balanced, as in `label_votes`.
        calibrations: Label column -> its calibration, by votes under the same rules; for some columns or none.
        ontology: For the term column; needed where there is one.

    Returns:
        Q rows. For each label column: `<column>`, string, `Unknown` where no neighbour voted or the calibration rejects
        it; `<column>_confidence`, float32, share of the votes for the label; `<column>_probability`, float32, of being
        right, where the column is calibrated; `<column>_voted`, string, the label even where it is rejected;
        `<column>_runner_up`, string, and `<column>_runner_up_share`, float32; `<column>_unknown`, string, the reason
        (`no neighbour`, `distance` or `confidence`), null where the label stands. For the term column also
        `<column>_rolled_up`, string, `Unknown` where no term has enough votes or the cell is too far;
        `<column>_rolled_up_label`, string; `<column>_rolled_up_share`, float32. Last `neighbor` list<int64> and
        `score` list<float>, without the absent.

    Raises:
        ReferenceSetError: As `label_votes`.
    """
    assert rules.term_column is None or (rules.term_column in rules.columns and ontology is not None), rules
    predicted: dict[str, pa.Array] = {}
    unknown_terms: dict[str, int] = {}
    for column in rules.columns:
        votes = label_votes(neighbor_ids_QK, scores_QK, labels, column, rules.vote, reference_cells or {})
        calibration = (calibrations or {}).get(column)
        probability_Q, reason_Q = (
            calibration.evaluate(votes.names, votes.tally) if calibration else _without_calibration(votes)
        )
        predicted |= _label_columns(column, votes, probability_Q, np.array(reason_Q, object))
        if column == rules.term_column and ontology is not None:
            rolled = roll_up(votes, ontology, rules.term_share)
            far_Q = np.array([reason == TOO_FAR for reason in reason_Q], bool)
            predicted |= _term_columns(column, rolled, ontology, far_Q)
            unknown_terms = rolled.unknown_terms
    return Predictions(pa.table(predicted | _neighbors(neighbor_ids_QK, scores_QK)), unknown_terms)


def _without_calibration(votes: LabelVotes) -> tuple[None, list[str]]:
    return None, ["" if has_votes else NO_NEIGHBOR_VOTED for has_votes in votes.tally.has_votes]


def _label_columns(
    column: str,
    votes: LabelVotes,
    probability_Q: npt.NDArray[np.float64] | None,
    reason_Q: npt.NDArray[np.object_],
) -> dict[str, pa.Array]:
    tally, stands_Q = votes.tally, reason_Q == ""
    columns = {
        column: _text(np.where(stands_Q, votes.top_labels, UNKNOWN)),
        f"{column}_confidence": pa.array(tally.share, pa.float32()),
    }
    if probability_Q is not None:
        columns[f"{column}_probability"] = pa.array(probability_Q, pa.float32())
    return columns | {
        f"{column}_voted": _text(votes.top_labels),
        f"{column}_runner_up": _text(votes.runners_up),
        f"{column}_runner_up_share": pa.array(tally.runner_up_share, pa.float32()),
        f"{column}_unknown": _text(np.array([reason or None for reason in reason_Q], object)),
    }


def _term_columns(
    column: str, rolled: RolledUp, ontology: Ontology, far_Q: npt.NDArray[np.bool_]
) -> dict[str, pa.Array]:
    terms = [None if far else term for term, far in zip(rolled.terms, far_Q, strict=True)]
    named = {term: ontology.label(term) if term in ontology else term for term in terms if term is not None}
    return {
        f"{column}_rolled_up": pa.array([term or UNKNOWN for term in terms], pa.string()),
        f"{column}_rolled_up_label": pa.array([named.get(term, UNKNOWN) for term in terms], pa.string()),
        f"{column}_rolled_up_share": pa.array(np.where(far_Q, 0.0, rolled.share), pa.float32()),
    }


def _neighbors(neighbor_ids_QK: Int64Array, scores_QK: Float32Matrix) -> dict[str, pa.Array]:
    exists_QK = neighbor_ids_QK != NO_NEIGHBOR
    offsets = np.concatenate([[0], exists_QK.sum(axis=1).cumsum()])
    return {
        NEIGHBOR: ragged_array(offsets, neighbor_ids_QK[exists_QK]),
        SCORE: ragged_array(offsets, scores_QK[exists_QK].astype(np.float32)),
    }


def _text(values: npt.NDArray[np.object_]) -> pa.Array:
    return pa.array(values.tolist(), pa.string())
