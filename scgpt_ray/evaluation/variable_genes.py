"""Highly variable genes, as scanpy ranks them.

Shapes: N cells, G genes.
"""

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.errors import InputError, optional

_LEAST_MEANS = 20
"""Different means that genes must have: on one alone the regression of scikit-misc ends the process."""


def variable_genes(values_NG: sparse.csr_matrix, n_genes: int, flavor: str) -> npt.NDArray[np.bool_]:
    """Select genes by `scanpy.pp.highly_variable_genes`, whose order of genes and ties these are.

    Args:
        values_NG: [N, G], genes in the order of var.
        n_genes: Number of genes to select; all where there are no more.
        flavor: `seurat_v3` (variance of standardised values, for counts) or `seurat` (normalised dispersion, for
            log1p values).

    Returns:
        bool [G].

    Raises:
        ConfigError: If scanpy, or scikit-misc for `seurat_v3`, is not installed.
        InputError: If scanpy cannot rank these values.
    """
    if values_NG.shape[1] <= n_genes:
        return np.ones(values_NG.shape[1], bool)
    _require_variety(values_NG)
    with optional("a ranking of genes", "scanpy, and scikit-misc for seurat_v3"):
        import scanpy as sc  # seconds to import

        try:
            # scanpy warns of values that are no counts; published experiments rank them all the same.
            found = sc.pp.highly_variable_genes(
                sc.AnnData(values_NG), n_top_genes=n_genes, flavor=flavor, check_values=False, inplace=False
            )
        except ValueError as error:  # of the regression of variance on mean
            raise _not_ranked(" ".join(str(error).split())) from error
    return np.asarray(found["highly_variable"], bool)


def _require_variety(values_NG: sparse.csr_matrix) -> None:
    means = np.unique(np.asarray(values_NG.mean(axis=0)))
    if len(means) < _LEAST_MEANS:
        n_cells, n_genes = values_NG.shape
        raise _not_ranked(f"{n_genes:,} genes have {len(means)} different means over {n_cells:,} cells")


def _not_ranked(found: str) -> InputError:
    return InputError(
        f"genes cannot be ranked: {found}",
        expected="values of enough cells and genes",
        remedy="take more cells, or embed all genes",
    )
