"""Principal components of highly variable genes: the embedding that needs no network, and must be beaten."""

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.errors import InputError
from scgpt_ray.schema import Float32Matrix

N_GENES = 2000
"""Number of highly variable genes; all genes if there are no more."""

N_COMPONENTS = 40
"""Number of principal components, as in the baseline of scGPT's authors."""

_COUNTS_PER_CELL = 1e4


def hvg_pca(counts_NG: sparse.csr_matrix, *, seed: int) -> Float32Matrix:
    """Embed cells by 40 principal components of 2,000 highly variable genes.

    Counts are scaled to 10,000 per cell and log1p-transformed; genes are selected by normalised dispersion (scanpy's
    flavor `seurat`) over all cells, regardless of batch keys.

    Args:
        counts_NG: Counts [n, genes], CSR.
        seed: Seed of the decomposition.

    Returns:
        float32 [n, min(40, n - 1, genes - 1)].

    Raises:
        InputError: If a value is not a whole number >= 0, or a cell has no counts.
    """
    import scanpy as sc  # seconds to import

    require_counts(counts_NG)
    expressed = np.flatnonzero(counts_NG.getnnz(axis=0))
    cells = sc.AnnData(sparse.csr_matrix(counts_NG[:, expressed], dtype=np.float32))
    sc.pp.normalize_total(cells, target_sum=_COUNTS_PER_CELL)
    sc.pp.log1p(cells)
    if cells.n_vars > N_GENES:
        sc.pp.highly_variable_genes(cells, n_top_genes=N_GENES, subset=True)
    n_components = min(N_COMPONENTS, min(cells.shape) - 1)
    components = sc.pp.pca(cells.X, n_comps=n_components, svd_solver="arpack", random_state=seed)
    return np.ascontiguousarray(components, np.float32)


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
