"""Principal components of counts: the embedding that needs no network, and must be beaten.

Shapes: N cells, G genes, C principal components.
"""

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import PCA

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.variable_genes import variable_genes
from scgpt_ray.schema import Float32Matrix

N_GENES = 2000
"""Default number of highly variable genes; all genes if there are no more."""

FLAVOR = "seurat"
"""Default ranking of them; see `variable_genes`."""

N_COMPONENTS = 40
"""Number of principal components, as in the baseline of scGPT's authors."""

_COUNTS_PER_CELL = 1e4


def log1p_cp10k(counts_NG: sparse.csr_matrix) -> sparse.csr_matrix:
    """Scale the counts of each cell to a sum of 10,000 and take log(1 + x): float32 CSR; no counts stay none."""
    sums_N = np.asarray(counts_NG.sum(axis=1), np.float64).ravel()
    scale_N = _COUNTS_PER_CELL / np.where(sums_N > 0, sums_N, 1)
    logs = np.log1p(counts_NG.data * np.repeat(scale_N, np.diff(counts_NG.indptr))).astype(np.float32)
    return sparse.csr_matrix((logs, counts_NG.indices, counts_NG.indptr), shape=counts_NG.shape)


def fit_components(
    logs_NG: sparse.csr_matrix | npt.NDArray[np.floating], n_components: int, *, seed: int
) -> tuple[PCA, npt.NDArray[np.floating]]:
    """Fit principal components, as many as the cells and genes allow.

    Args:
        logs_NG: [N, G], at least 2 x 2, log1p of counts scaled to an equal sum; dense or CSR.
        n_components: At most.
        seed: Of the decomposition.

    Returns:
        The decomposition, whose `transform` projects other cells, and the cells in it, [N, C].
    """
    components = PCA(min(n_components, min(logs_NG.shape) - 1), svd_solver="arpack", random_state=seed)
    return components, components.fit_transform(logs_NG)


def hvg_pca(counts_NG: sparse.csr_matrix, *, n_genes: int = N_GENES, flavor: str = FLAVOR, seed: int) -> Float32Matrix:
    """Embed cells by 40 principal components of the highly variable genes of their counts.

    Counts are scaled to 10,000 per cell and log1p-transformed; genes are ranked over all cells, regardless of batch
    keys. See `variable_components`.

    Raises:
        InputError: If a value is not a whole number >= 0, or a cell has no counts.
    """
    require_counts(counts_NG)
    return variable_components(log1p_cp10k(counts_NG), n_genes=n_genes, flavor=flavor, seed=seed)


def variable_components(values_NG: sparse.csr_matrix, *, n_genes: int, flavor: str, seed: int) -> Float32Matrix:
    """Embed cells by 40 principal components of highly variable genes, of values as they are.

    Args:
        values_NG: [n, genes], CSR.
        n_genes: Number of highly variable genes; 0 for all genes.
        flavor: How they are ranked; see `variable_genes`.
        seed: Seed of the decomposition.

    Returns:
        float32 [n, min(40, n - 1, genes - 1)].

    Raises:
        InputError: If the genes cannot be ranked.
    """
    values_NG = values_NG[:, np.flatnonzero(values_NG.getnnz(axis=0))]
    if n_genes:
        values_NG = values_NG[:, variable_genes(values_NG, n_genes, flavor)]
    _, components_NC = fit_components(values_NG, N_COMPONENTS, seed=seed)
    return np.ascontiguousarray(components_NC, np.float32)


def require_whole(values: npt.NDArray[np.floating]) -> None:
    """Require raw counts.

    Raises:
        InputError: If a value is not a whole number >= 0.
    """
    wrong = values[~((values >= 0) & (values == np.round(values)))]
    if len(wrong):
        raise InputError(
            f"the counts have the value {wrong[0]:g}",
            expected="whole numbers >= 0",
            remedy="give raw counts, such as another --layer",
        )


def require_counts(counts_NG: sparse.csr_matrix) -> None:
    """Require raw counts, and at least one per cell.

    Raises:
        InputError: If a value is not a whole number >= 0, or a cell has no counts.
    """
    require_whole(counts_NG.data)
    n_empty = int((np.asarray(counts_NG.sum(axis=1)).ravel() == 0).sum())
    if n_empty:
        raise InputError(
            f"{n_empty:,} of {counts_NG.shape[0]:,} cells have no counts",
            expected="the counts that the cells were embedded from",
            remedy="name the atlas that was embedded with --counts",
        )
