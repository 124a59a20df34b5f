"""Labels by a vote of the nearest reference cells, without an index: for baselines and comparisons.

Shapes: N reference cells, Q query cells, D dimensions, K neighbours.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.mapping.votes import tally_votes
from scgpt_ray.schema import Int64Array


def nearest_labels(
    reference_ND: npt.NDArray[np.floating],
    labels_N: npt.NDArray[np.object_],
    query_QD: npt.NDArray[np.floating],
    k: int,
    groups: Iterable[tuple[Int64Array, npt.NDArray[np.bool_] | None]] | None = None,
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    """Label query cells by a majority of their k nearest reference cells, found by exhaustive search.

    The vote is that of the mapping (`tally_votes`). Distance is Euclidean; of unit vectors it ranks neighbours, and
    breaks ties, as cosine similarity does.

    Args:
        reference_ND: [N, D].
        labels_N: Label of each, str.
        query_QD: [Q, D].
        k: Neighbours that vote; all where there are fewer.
        groups: Rows of query cells, and which reference cells may vote on them, bool [N], None for all; each query
            cell once. None where all may vote on all.

    Returns:
        Labels str [Q], `Unknown` where no cell may vote; and the share of the votes for each, [Q].
    """
    names, codes_N = np.unique(labels_N.astype(str), return_inverse=True)
    labels_Q, share_Q = np.full(len(query_QD), UNKNOWN, object), np.zeros(len(query_QD))
    for rows, allowed_N in [(np.arange(len(query_QD)), None)] if groups is None else groups:
        voters = np.arange(len(reference_ND)) if allowed_N is None else np.flatnonzero(allowed_N)
        if not len(voters) or not len(rows):
            continue
        search = NearestNeighbors(n_neighbors=min(k, len(voters)), algorithm="brute", metric="sqeuclidean")
        distances_QK, places_QK = search.fit(reference_ND[voters]).kneighbors(query_QD[rows])
        codes_QK = codes_N[voters][places_QK].astype(np.int32)
        tally = tally_votes(codes_QK, -distances_QK.astype(np.float32), len(names))
        labels_Q[rows], share_Q[rows] = names[tally.top].astype(object), tally.share
    return labels_Q, share_Q
