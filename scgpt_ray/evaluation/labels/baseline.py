"""Labels without an index, for baselines: of the nearest cells, also on principal components, and always the same one.

Shapes: N reference cells, Q query cells, D dimensions, K neighbours, G genes.
"""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from scgpt_ray.evaluation.components import fit_components
from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.mapping.votes import CountOfValue, tally_votes
from scgpt_ray.schema import Int64Array

BASELINE = "PCA + kNN"
N_COMPONENTS = 30
"""Principal components."""

Labelling: TypeAlias = tuple[npt.NDArray[np.object_], npt.NDArray[np.floating]]
"""Label of each query cell, str [Q], and how sure it is, [Q]: the share of the votes or of the reference."""


def majority(cells: CountOfValue, n_queries: int) -> Labelling:
    """Give every query cell the reference's most frequent label, of equals the one that sorts first.

    Args:
        cells: Label -> reference cells; those without a label do not count.
        n_queries: Query cells.
    """
    labelled = {name: n for name, n in cells.items() if name is not None}
    most = min(labelled, key=lambda name: (-labelled[name], name))
    return np.full(n_queries, most, object), np.full(n_queries, labelled[most] / sum(labelled.values()))


def pca_knn(
    reference_log1p: sparse.csr_matrix | npt.NDArray[np.floating],
    reference_labels: npt.NDArray[np.object_],
    query_log1p: sparse.csr_matrix | npt.NDArray[np.floating],
    *,
    k: int,
    seed: int,
) -> Labelling:
    """Predict query labels by the k nearest reference cells on the reference's principal components.

    Args:
        reference_log1p: [N, G], log1p of counts scaled to an equal sum; dense or CSR.
        reference_labels: str [N].
        query_log1p: [Q, G], the same genes, scaled likewise.
        k: Neighbours that vote; all of the reference where it has fewer cells.
        seed: Of the decomposition.
    """
    assert reference_log1p.shape[1] == query_log1p.shape[1], "reference and query need the same genes"
    components, reference_NC = fit_components(reference_log1p, N_COMPONENTS, seed=seed)
    return nearest_labels(reference_NC, reference_labels, components.transform(query_log1p), k)


def nearest_labels(
    reference_ND: npt.NDArray[np.floating],
    labels_N: npt.NDArray[np.object_],
    query_QD: npt.NDArray[np.floating],
    k: int,
    groups: Iterable[tuple[Int64Array, npt.NDArray[np.bool_] | None]] | None = None,
) -> Labelling:
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
        `Unknown` with a share of 0 where no cell may vote.
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
