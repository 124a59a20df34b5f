"""The baselines that an embedding must beat: always the same label, and principal components with neighbours."""

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from scgpt_ray.mapping.ballot import CountOfValue


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


def pca_knn(
    reference_log1p: sparse.csr_matrix | npt.NDArray[np.floating],
    reference_labels: npt.NDArray[np.object_],
    query_log1p: sparse.csr_matrix | npt.NDArray[np.floating],
    *,
    k: int,
    seed: int,
    n_components: int = 30,
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    """Predict query labels by the k nearest reference cells on the reference's principal components.

    Args:
        reference_log1p: [n, genes], log1p of counts scaled to an equal sum; dense or CSR.
        reference_labels: str [n].
        query_log1p: [m, genes], the same genes, scaled likewise.
        k: Neighbours that vote; all of the reference where it has fewer cells.
        seed: Of the decomposition.
        n_components: Principal components; fewer where the reference is smaller.

    Returns:
        Labels str [m], and the share of the k that voted for each, [m].
    """
    assert reference_log1p.shape[1] == query_log1p.shape[1], "reference and query need the same genes"
    n_components = min(n_components, min(reference_log1p.shape) - 1)
    components = PCA(n_components, svd_solver="arpack", random_state=seed)
    reference_NC = components.fit_transform(reference_log1p)
    neighbours = KNeighborsClassifier(min(k, len(reference_NC))).fit(reference_NC, reference_labels)
    share_MC = neighbours.predict_proba(components.transform(query_log1p))
    return np.asarray(neighbours.classes_[share_MC.argmax(axis=1)], object), share_MC.max(axis=1)
