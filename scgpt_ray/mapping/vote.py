"""The vote: neighbours' labels to one label and a confidence.

Shapes: Q queries, K neighbours, R runs of equal labels over all queries.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scgpt_ray.schema import Float32Matrix

ABSTAINS = -1
"""Code of a neighbour without a label, and of a query that nobody voted for."""

Codes: TypeAlias = npt.NDArray[np.int32]
"""Labels or groups as numbers; -1 for none."""


def vote(codes_QK: Codes, scores_QK: Float32Matrix, n_labels: int) -> tuple[Codes, npt.NDArray[np.float32]]:
    """Elect each query's label by plain majority.

    A tie goes to the label whose neighbours' scores sum to more, then to the smaller code.

    Args:
        codes_QK: int32 [Q, K], label codes below n_labels; -1 where there is no neighbour or it has no label.
        scores_QK: float32 [Q, K]; where the code is -1 they are not read.
        n_labels: Number of labels.

    Returns:
        winner: int32 [Q], -1 where nobody voted.
        confidence: float32 [Q], votes for the winner / neighbours that voted; 0 where nobody did.
    """
    assert codes_QK.shape == scores_QK.shape, (codes_QK.shape, scores_QK.shape)
    assert codes_QK.size == 0 or (codes_QK.min() >= ABSTAINS and codes_QK.max() < n_labels), n_labels
    winner_Q = np.full(len(codes_QK), ABSTAINS, np.int32)
    confidence_Q = np.zeros(len(codes_QK), np.float32)
    query_V, place_V = np.nonzero(codes_QK != ABSTAINS)
    if len(query_V) == 0:
        return winner_Q, confidence_Q

    code_V, score_V = codes_QK[query_V, place_V], scores_QK[query_V, place_V].astype(np.float64)
    by_label_V = np.lexsort((code_V, query_V))
    query_V, code_V, score_V = query_V[by_label_V], code_V[by_label_V], score_V[by_label_V]
    starts_R = np.flatnonzero(_changes(query_V) | _changes(code_V))
    query_R, code_R = query_V[starts_R], code_V[starts_R]
    votes_R = np.diff(starts_R, append=len(query_V))
    sum_R = np.add.reduceat(score_V, starts_R)

    best_R = np.lexsort((code_R, -sum_R, -votes_R, query_R))
    first = best_R[_changes(query_R[best_R])]
    winner_Q[query_R[first]] = code_R[first]
    voters_Q = np.bincount(query_V, minlength=len(codes_QK))
    confidence_Q[query_R[first]] = votes_R[first] / voters_Q[query_R[first]]
    return winner_Q, confidence_Q


def _changes(values_V: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    return np.concatenate([[True], values_V[1:] != values_V[:-1]])
