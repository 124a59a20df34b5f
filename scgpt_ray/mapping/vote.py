"""The vote: neighbours' labels to one label and how sure it is.

Shapes: Q queries, K neighbours, V votes cast, R runs of equal labels over all queries.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scgpt_ray.schema import Float32Matrix, Int64Array

ABSTAINS = -1
"""Code of a neighbour without a label, and of a query that nobody voted for."""

Codes: TypeAlias = npt.NDArray[np.int32]
"""Labels or groups as numbers; -1 for none."""

Floats: TypeAlias = npt.NDArray[np.float64]
"""Shares, weights and probabilities."""

SHARE_DECIMALS = 9
"""Shares that agree so far tie: sums of weights differ by rounding, shares of votes by at least 1 / K."""


@dataclass(frozen=True, eq=False)
class Election:
    """What became of each query's vote, [Q] each."""

    winner: Codes
    """-1 where nobody voted."""
    share: Floats
    """Votes for the winner / all votes; 0 where nobody voted."""
    runner_up: Codes
    """The label that came second; -1 where the neighbours have no other."""
    runner_up_share: Floats
    """0 where there is none."""
    nearness: Floats
    """Mean score of the neighbours that voted, each counting the same; -inf where nobody did."""

    @property
    def margin(self) -> Floats:
        """How far the winner is ahead, as a share of the votes."""
        return self.share - self.runner_up_share

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """Where somebody voted."""
        return np.not_equal(self.winner, ABSTAINS)

    def take(self, rows: Int64Array | npt.NDArray[np.bool_]) -> "Election":
        """The elections of some queries."""
        return Election(
            self.winner[rows], self.share[rows], self.runner_up[rows], self.runner_up_share[rows], self.nearness[rows]
        )


def elect(codes_QK: Codes, scores_QK: Float32Matrix, n_labels: int, weights_QK: Floats | None = None) -> Election:
    """Elect each query's label.

    The label with most votes wins. A tie goes to the label whose neighbours' scores sum to more, then to the smaller
    code. The order of the neighbours does not matter.

    Args:
        codes_QK: int32 [Q, K], label codes below n_labels; -1 where there is no neighbour or it has no label.
        scores_QK: float32 [Q, K]; where the code is -1 they are not read.
        n_labels: Number of labels.
        weights_QK: float64 [Q, K], votes of each neighbour, at least 0 and for each query not all 0; None for one
            each.
    """
    assert codes_QK.shape == scores_QK.shape, (codes_QK.shape, scores_QK.shape)
    assert codes_QK.size == 0 or (codes_QK.min() >= ABSTAINS and codes_QK.max() < n_labels), n_labels
    weights_QK = np.ones(codes_QK.shape) if weights_QK is None else weights_QK
    n_queries = len(codes_QK)
    winner_Q, second_Q = np.full((2, n_queries), ABSTAINS, np.int32)
    share_Q, second_share_Q = np.zeros((2, n_queries))
    nearness_Q = np.full(n_queries, -np.inf)
    if (codes_QK != ABSTAINS).any():
        query_R, code_R, votes_R, sum_R, voters_R = _tally(codes_QK, scores_QK, weights_QK)
        share_R = votes_R / np.bincount(query_R, votes_R)[query_R]
        ranked_R = np.lexsort((code_R, -sum_R, -share_R.round(SHARE_DECIMALS), query_R))
        is_first_R = changes(query_R[ranked_R])
        first, second = ranked_R[is_first_R], ranked_R[1:][is_first_R[:-1] & ~is_first_R[1:]]
        winner_Q[query_R[first]], share_Q[query_R[first]] = code_R[first], share_R[first]
        second_Q[query_R[second]], second_share_Q[query_R[second]] = code_R[second], share_R[second]
        mean_score_Q = np.bincount(query_R, sum_R) / np.maximum(np.bincount(query_R, voters_R), 1)
        nearness_Q[query_R[first]] = mean_score_Q[query_R[first]]
    return Election(winner_Q, share_Q, second_Q, second_share_Q, nearness_Q)


def _tally(
    codes_QK: Codes, scores_QK: Float32Matrix, weights_QK: Floats
) -> tuple[Int64Array, Codes, Floats, Floats, Int64Array]:
    """Query, label, votes, sum of scores and number of voters of each run, [R] each, sorted by query and label."""
    query_V, place_V = np.nonzero(codes_QK != ABSTAINS)
    code_V, score_V = codes_QK[query_V, place_V], scores_QK[query_V, place_V].astype(np.float64)
    weight_V = weights_QK[query_V, place_V]
    # By score and weight too, because sums of floats depend on their order.
    order_V = np.lexsort((weight_V, score_V, code_V, query_V))
    query_V, code_V, score_V, weight_V = query_V[order_V], code_V[order_V], score_V[order_V], weight_V[order_V]
    starts_R = np.flatnonzero(changes(query_V) | changes(code_V))
    votes_R, sum_R = np.add.reduceat(weight_V, starts_R), np.add.reduceat(score_V, starts_R)
    return query_V[starts_R], code_V[starts_R], votes_R, sum_R, np.diff(starts_R, append=len(query_V))


def vote(codes_QK: Codes, scores_QK: Float32Matrix, n_labels: int) -> tuple[Codes, npt.NDArray[np.float32]]:
    """Elect each query's label by plain majority, as `elect`.

    Returns:
        winner: int32 [Q], -1 where nobody voted.
        confidence: float32 [Q], votes for the winner / neighbours that voted; 0 where nobody did.
    """
    election = elect(codes_QK, scores_QK, n_labels)
    return election.winner, election.share.astype(np.float32)


def changes(values_V: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Where a run of equal values starts, bool [V]."""
    return np.concatenate([[True], values_V[1:] != values_V[:-1]])
