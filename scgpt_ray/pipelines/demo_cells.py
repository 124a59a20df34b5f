"""The cells of the demo: 700 blood cells that ship with scanpy."""

from typing import Any

import numpy as np

QUERY_SHARE = 0.2
LABEL, SPLIT = "cell_type", "split"


def blood_cells(seed: int) -> Any:
    """Load `pbmc68k_reduced` (10x Genomics; Zheng et al. 2017, doi:10.1038/ncomms14049) and split it.

    Returns:
        AnnData, 700 cells x 765 genes: X holds log1p values of library-normalised counts, which bin like counts;
        obs has `cell_type` and `split` (reference or query); var is indexed by gene symbols.
    """
    import scanpy as sc  # takes seconds to import, and only the demo needs it

    cells = sc.datasets.pbmc68k_reduced().raw.to_adata()
    cells.obs = cells.obs[["bulk_labels"]].rename(columns={"bulk_labels": LABEL}).astype(str)
    cells.var = cells.var[[]]
    for slot in ("obsm", "varm", "obsp", "uns"):
        getattr(cells, slot).clear()
    is_query = np.random.default_rng(seed).permutation(cells.n_obs) < round(QUERY_SHARE * cells.n_obs)
    cells.obs[SPLIT] = np.where(is_query, "query", "reference")
    return cells
