"""Neighbours vote on a label: one label for each query cell, and how clear the vote was.

Shapes: Q queries, K neighbours, V votes cast, R runs of equal labels over all queries, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.mapping.label_table import (
    NO_CODE,
    Codes,
    NeighborLabels,
    broken,
    neighbor_labels,
    neighbor_rows,
)
from scgpt_ray.schema import Float32Matrix, Int64Array

Floats: TypeAlias = npt.NDArray[np.float64]
"""Shares, weights and probabilities."""

CountOfValue: TypeAlias = Mapping[str | None, int]
"""Text of a value, None for null -> reference cells that have it."""

CellCounts: TypeAlias = Mapping[str, CountOfValue]
"""Column -> value -> reference cells."""

SHARE_DECIMALS = 9
"""Shares that agree so far tie: sums of weights differ by rounding, shares of votes by at least 1 / K."""


@dataclass(frozen=True)
class VoteRules:
    """How neighbours vote. A tie goes to the higher sum of scores, then to the label that sorts first."""

    weighting: Literal["uniform", "distance"] = "uniform"
    """One vote each, or more for the nearer (`distance_weights`)."""
    balance_by: str | None = None
    """Column, such as dataset_id or the label column: each vote is divided by the share of the reference that has the
    neighbour's value in it (`balance_weights`). None: votes are not balanced."""


@dataclass(frozen=True, eq=False)
class VoteTally:
    """The outcome of each query's vote, [Q] each."""

    top: Codes
    """The label with most votes; -1 where no neighbour voted."""
    share: Floats
    """Votes for it / all votes; 0 where no neighbour voted."""
    runner_up: Codes
    """The label with second most votes; -1 where the neighbours have no other."""
    runner_up_share: Floats
    """0 where no label came second."""
    nearness: Floats
    """Mean score of the neighbours that voted, each counting the same; -inf where none did."""

    @property
    def margin(self) -> Floats:
        """Lead of the top label, as a share of the votes."""
        return self.share - self.runner_up_share

    @property
    def has_votes(self) -> npt.NDArray[np.bool_]:
        """Where at least one neighbour voted."""
        return np.not_equal(self.top, NO_CODE)

    def take(self, rows: Int64Array | npt.NDArray[np.bool_]) -> "VoteTally":
        """The outcome of some queries."""
        return VoteTally(*(values[rows] for values in vars(self).values()))


@dataclass(frozen=True, eq=False)
class LabelVotes:
    """The votes of every query's neighbours on one label column, and their outcome."""

    names: tuple[str, ...]
    """Labels, sorted."""
    codes_QK: Codes
    """Label of each neighbour: a place in names, or -1."""
    weights_QK: Floats
    """Weight of its vote."""
    tally: VoteTally

    @property
    def top_labels(self) -> npt.NDArray[np.object_]:
        """Labels with most votes, str [Q]; None where no neighbour voted."""
        return named(self.names, self.tally.top)

    @property
    def runners_up(self) -> npt.NDArray[np.object_]:
        """Labels with second most votes, str [Q]; None where there is no other."""
        return named(self.names, self.tally.runner_up)


def label_votes(
    neighbor_ids_QK: Int64Array,
    scores_QK: Float32Matrix,
    labels: pa.Table,
    column: str,
    rules: VoteRules,
    reference_cells: CellCounts,
) -> LabelVotes:
    """Let the neighbours vote on a label column.

    Args:
        neighbor_ids_QK: int64 [Q, K], -1 where there is no neighbour.
        scores_QK: float32 [Q, K].
        labels: soma_joinid, the column, and rules.balance_by, each neighbour once; a null label does not vote.
        column: Label column.
        rules: How they vote.
        reference_cells: Cells per value over the whole reference, of the column that votes are balanced by; not read
            if they are not.

    Raises:
        ReferenceSetError: If a column is absent, a neighbour is missing or twice in the table, or a value of it was
            not counted.
    """
    rows_QK = neighbor_rows(neighbor_ids_QK, labels)
    voters = neighbor_labels(rows_QK, labels, column)
    weights_QK = (voters.codes_QK != NO_CODE).astype(np.float64)
    if rules.weighting == "distance":
        weights_QK = distance_weights(voters.codes_QK, scores_QK)
    if rules.balance_by is not None:
        groups = neighbor_labels(rows_QK, labels, rules.balance_by)
        cells = reference_cells[rules.balance_by]
        if rules.balance_by == column:  # a cell without a label does not vote, and is no group
            cells = {name: n for name, n in cells.items() if name is not None}
        weights_QK = weights_QK * _balanced(voters, groups, cells)
    tally = tally_votes(voters.codes_QK, scores_QK, len(voters.names), weights_QK)
    return LabelVotes(voters.names, voters.codes_QK, weights_QK, tally)


def tally_votes(
    codes_QK: Codes, scores_QK: Float32Matrix, n_labels: int, weights_QK: Floats | None = None
) -> VoteTally:
    """Count each query's votes.

    The label with most votes is the top label. A tie goes to the label whose neighbours' scores sum to more, then to
    the smaller code. The order of the neighbours does not matter.

    Args:
        codes_QK: int32 [Q, K], label codes below n_labels; -1 where there is no neighbour or it has no label.
        scores_QK: float32 [Q, K]; where the code is -1 they are not read.
        n_labels: Number of labels.
        weights_QK: float64 [Q, K], votes of each neighbour, at least 0 and for each query not all 0; None for one
            each.
    """
    assert codes_QK.shape == scores_QK.shape, (codes_QK.shape, scores_QK.shape)
    assert codes_QK.size == 0 or (codes_QK.min() >= NO_CODE and codes_QK.max() < n_labels), n_labels
    weights_QK = np.ones(codes_QK.shape) if weights_QK is None else weights_QK
    n_queries = len(codes_QK)
    top_Q, second_Q = np.full((2, n_queries), NO_CODE, np.int32)
    share_Q, second_share_Q = np.zeros((2, n_queries))
    nearness_Q = np.full(n_queries, -np.inf)
    if (codes_QK != NO_CODE).any():
        query_R, code_R, votes_R, sum_R, voters_R = _runs(codes_QK, scores_QK, weights_QK)
        share_R = votes_R / np.bincount(query_R, votes_R)[query_R]
        ranked_R = np.lexsort((code_R, -sum_R, -share_R.round(SHARE_DECIMALS), query_R))
        is_first_R = changes(query_R[ranked_R])
        first, second = ranked_R[is_first_R], ranked_R[1:][is_first_R[:-1] & ~is_first_R[1:]]
        top_Q[query_R[first]], share_Q[query_R[first]] = code_R[first], share_R[first]
        second_Q[query_R[second]], second_share_Q[query_R[second]] = code_R[second], share_R[second]
        mean_score_Q = np.bincount(query_R, sum_R) / np.maximum(np.bincount(query_R, voters_R), 1)
        nearness_Q[query_R[first]] = mean_score_Q[query_R[first]]
    return VoteTally(top_Q, share_Q, second_Q, second_share_Q, nearness_Q)


def _runs(
    codes_QK: Codes, scores_QK: Float32Matrix, weights_QK: Floats
) -> tuple[Int64Array, Codes, Floats, Floats, Int64Array]:
    """Query, label, votes, sum of scores and number of voters of each run, [R] each, sorted by query and label."""
    query_V, place_V = np.nonzero(codes_QK != NO_CODE)
    code_V, score_V = codes_QK[query_V, place_V], scores_QK[query_V, place_V].astype(np.float64)
    weight_V = weights_QK[query_V, place_V]
    # By score and weight too, because sums of floats depend on their order.
    order_V = np.lexsort((weight_V, score_V, code_V, query_V))
    query_V, code_V, score_V, weight_V = query_V[order_V], code_V[order_V], score_V[order_V], weight_V[order_V]
    starts_R = np.flatnonzero(changes(query_V) | changes(code_V))
    votes_R, sum_R = np.add.reduceat(weight_V, starts_R), np.add.reduceat(score_V, starts_R)
    return query_V[starts_R], code_V[starts_R], votes_R, sum_R, np.diff(starts_R, append=len(query_V))


def distance_weights(codes_QK: Codes, scores_QK: Float32Matrix) -> Floats:
    """Weights that fall from 1 for the nearest voter to 0 for the farthest.

    w_j = (s_j - s_k) / (s_1 - s_k), and 1 where s_1 = s_k: the rule of Dudani (1976, The distance-weighted
    k-nearest-neighbor rule, doi:10.1109/TSMC.1976.5408784) with scores for distances. It has no bandwidth, and is the
    same for cosine similarity and negated squared distance of unit vectors, because it ignores scale and origin.

    Args:
        codes_QK: int32 [Q, K]; a neighbour with -1 does not vote and is neither nearest nor farthest.
        scores_QK: float32 [Q, K].

    Returns:
        float64 [Q, K]; 0 for a neighbour that does not vote.
    """
    votes_QK = codes_QK != NO_CODE
    scores_QK = scores_QK.astype(np.float64)
    nearest_Q1 = np.max(scores_QK, axis=1, keepdims=True, initial=-np.inf, where=votes_QK)
    farthest_Q1 = np.min(scores_QK, axis=1, keepdims=True, initial=np.inf, where=votes_QK)
    weights_QK: Floats = votes_QK.astype(np.float64)
    np.divide(
        scores_QK - farthest_Q1,
        nearest_Q1 - farthest_Q1,
        out=weights_QK,
        where=votes_QK & (nearest_Q1 > farthest_Q1),
    )
    return weights_QK


def balance_weights(group_QK: Codes, cells_G: Int64Array) -> Floats:
    """Weights that give every group of reference cells the same total.

    w_g = N / (G n_g) with N reference cells in G groups, n_g of them in group g: 1 for a group of mean size
    (King and Zeng 2001, doi:10.1093/oxfordjournals.pan.a004868).

    Args:
        group_QK: int32 [Q, K], the neighbours' groups; -1 for none, whose weight is 0.
        cells_G: int64 [G], reference cells of each group, at least 1.
    """
    weight_G = cells_G.sum() / (len(cells_G) * cells_G)
    # The entry behind the last group is what -1 picks.
    return np.append(weight_G, 0.0)[group_QK]


def _balanced(voters: NeighborLabels, groups: NeighborLabels, cells: CountOfValue) -> Floats:
    """Weights by the voters' groups; the cells of the reference without a value, if any, are one group more."""
    without = (voters.codes_QK != NO_CODE) & (groups.codes_QK == NO_CODE)
    met = {*groups.names, None} if without.any() else set(groups.names)
    uncounted = sorted(str(value) for value in met - cells.keys())
    if uncounted:
        raise broken(f"a neighbour has {uncounted[0]}, which is none of the reference's {len(cells)} values")
    values = sorted(cells, key=lambda value: (value is None, value or ""))
    place = {value: code for code, value in enumerate(values)}
    codes = np.array([*(place[name] for name in groups.names), place.get(None, NO_CODE)], np.int32)
    return balance_weights(codes[groups.codes_QK], np.array([cells[value] for value in values], np.int64))


def named(names: tuple[str, ...], codes_Q: Codes) -> npt.NDArray[np.object_]:
    """The label of each code, str [Q]; None for -1."""
    return np.array([*names, None], object)[codes_Q]


def changes(values_V: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Where a run of equal values starts, bool [V]."""
    return np.concatenate([[True], values_V[1:] != values_V[:-1]])
