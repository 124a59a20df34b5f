"""The baselines that an embedding must beat: always the same label, and principal components with neighbours.

Shapes: N reference cells, M query cells, G genes, C principal components.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.mapping.votes import CountOfValue
from scgpt_ray.schema import Float32Matrix, Int64Array

BASELINE = "PCA + kNN"
N_COMPONENTS = 30
"""Principal components."""

_COUNTS_PER_CELL = 1e4

_Mask = npt.NDArray[np.bool_]


def majority(cells: CountOfValue, n_queries: int) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    """Call every query cell by the reference's most frequent label, of equals the one that sorts first.

    Args:
        cells: Label -> reference cells; those without a label do not count.
        n_queries: Query cells.

    Returns:
        Labels str [n_queries], and its share of the reference for each, [n_queries].
    """
    labelled = {name: n for name, n in cells.items() if name is not None}
    most = min(labelled, key=lambda name: (-labelled[name], name))
    return np.full(n_queries, most, object), np.full(n_queries, labelled[most] / sum(labelled.values()))


def log1p_per_10k(counts_NG: sparse.csr_matrix) -> sparse.csr_matrix:
    """Scale the counts of each cell to a sum of 10,000 and take log(1 + x): float32 CSR; no counts stay none."""
    sums_N = np.asarray(counts_NG.sum(axis=1), np.float64).ravel()
    scale_N = _COUNTS_PER_CELL / np.where(sums_N > 0, sums_N, 1)
    logs = np.log1p(counts_NG.data * np.repeat(scale_N, np.diff(counts_NG.indptr))).astype(np.float32)
    return sparse.csr_matrix((logs, counts_NG.indices, counts_NG.indptr), shape=counts_NG.shape)


def fit_components(
    reference_NG: sparse.csr_matrix | npt.NDArray[np.floating], *, seed: int, n_components: int = N_COMPONENTS
) -> tuple[PCA, Float32Matrix]:
    """Fit principal components to a reference, as many as it allows.

    Args:
        reference_NG: [N, G], at least 2 x 2, log1p of counts scaled to an equal sum; dense or CSR.
        seed: Of the decomposition.
        n_components: At most.

    Returns:
        The decomposition, and the reference cells in it, [N, C].
    """
    components = PCA(min(n_components, min(reference_NG.shape) - 1), svd_solver="arpack", random_state=seed)
    return components, components.fit_transform(reference_NG)


def nearest_vote(
    reference_NC: npt.NDArray[np.floating],
    labels_N: npt.NDArray[np.object_],
    query_MC: npt.NDArray[np.floating],
    k: int,
    groups: Iterable[tuple[Int64Array, _Mask | None]] | None = None,
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    """Label query cells by a majority of their k nearest reference cells; of equals the label that sorts first wins.

    Args:
        reference_NC: [N, C].
        labels_N: Label of each, str.
        query_MC: [M, C].
        k: Neighbours that vote; all where there are fewer.
        groups: Rows of query cells, and which reference cells may vote on them, bool [N], None for all; each query
            cell once. None where all may vote on all.

    Returns:
        Labels str [M], `Unknown` where nobody may vote; and the share of the votes for each, [M].
    """
    labels_M, share_M = np.full(len(query_MC), UNKNOWN, object), np.zeros(len(query_MC))
    for rows, allowed_N in [(np.arange(len(query_MC)), None)] if groups is None else groups:
        voters = np.arange(len(reference_NC)) if allowed_N is None else np.flatnonzero(allowed_N)
        if not len(voters) or not len(rows):
            continue
        neighbours = KNeighborsClassifier(min(k, len(voters))).fit(reference_NC[voters], labels_N[voters])
        share_ML = neighbours.predict_proba(query_MC[rows])
        labels_M[rows], share_M[rows] = neighbours.classes_[share_ML.argmax(axis=1)], share_ML.max(axis=1)
    return labels_M, share_M


def pca_knn(
    reference_log1p: sparse.csr_matrix | npt.NDArray[np.floating],
    reference_labels: npt.NDArray[np.object_],
    query_log1p: sparse.csr_matrix | npt.NDArray[np.floating],
    *,
    k: int,
    seed: int,
    n_components: int = N_COMPONENTS,
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    """Predict query labels by the k nearest reference cells on the reference's principal components.

    Args:
        reference_log1p: [N, G], log1p of counts scaled to an equal sum; dense or CSR.
        reference_labels: str [N].
        query_log1p: [M, G], the same genes, scaled likewise.
        k: Neighbours that vote; all of the reference where it has fewer cells.
        seed: Of the decomposition.
        n_components: Principal components; fewer where the reference is smaller.

    Returns:
        Labels str [M], and the share of the k that voted for each, [M].
    """
    assert reference_log1p.shape[1] == query_log1p.shape[1], "reference and query need the same genes"
    components, reference_NC = fit_components(reference_log1p, seed=seed, n_components=n_components)
    return nearest_vote(reference_NC, reference_labels, components.transform(query_log1p), k)
