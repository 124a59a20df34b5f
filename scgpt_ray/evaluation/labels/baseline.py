"""The baselines that an embedding must beat: always the same label, and principal components with neighbours.

Shapes: N reference cells, M query cells, G genes.
"""

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.evaluation.components import fit_components
from scgpt_ray.evaluation.labels.nearest import nearest_labels
from scgpt_ray.mapping.votes import CountOfValue

BASELINE = "PCA + kNN"
N_COMPONENTS = 30
"""Principal components."""


def majority(cells: CountOfValue, n_queries: int) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    """Give every query cell the reference's most frequent label, of equals the one that sorts first.

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
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    """Predict query labels by the k nearest reference cells on the reference's principal components.

    Args:
        reference_log1p: [N, G], log1p of counts scaled to an equal sum; dense or CSR.
        reference_labels: str [N].
        query_log1p: [M, G], the same genes, scaled likewise.
        k: Neighbours that vote; all of the reference where it has fewer cells.
        seed: Of the decomposition.

    Returns:
        Labels str [M], and the share of the k that voted for each, [M].
    """
    assert reference_log1p.shape[1] == query_log1p.shape[1], "reference and query need the same genes"
    components, reference_NC = fit_components(reference_log1p, N_COMPONENTS, seed=seed)
    return nearest_labels(reference_NC, reference_labels, components.transform(query_log1p), k)
