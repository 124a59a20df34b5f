"""The baseline that an embedding must beat: principal components and nearest neighbours."""

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier


def pca_knn(
    reference_log1p: sparse.csr_matrix | npt.NDArray[np.floating],
    reference_labels: npt.NDArray[np.object_],
    query_log1p: sparse.csr_matrix | npt.NDArray[np.floating],
    *,
    k: int,
    seed: int,
    n_components: int = 30,
) -> npt.NDArray[np.object_]:
    """Predict query labels by the k nearest reference cells on the reference's principal components.

    Args:
        reference_log1p: [n, genes], log1p of counts scaled to an equal sum; dense or CSR.
        reference_labels: str [n].
        query_log1p: [m, genes], the same genes, scaled likewise.
        k: Neighbours that vote; all of the reference where it has fewer cells.
        seed: Of the decomposition.
        n_components: Principal components; fewer where the reference is smaller.

    Returns:
        str [m].
    """
    assert reference_log1p.shape[1] == query_log1p.shape[1], "reference and query need the same genes"
    n_components = min(n_components, min(reference_log1p.shape) - 1)
    components = PCA(n_components, svd_solver="arpack", random_state=seed)
    reference_NC = components.fit_transform(reference_log1p)
    neighbours = KNeighborsClassifier(min(k, len(reference_NC))).fit(reference_NC, reference_labels)
    return np.asarray(neighbours.predict(components.transform(query_log1p)), object)
