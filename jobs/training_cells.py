"""The cells that the network of the package is trained on: one name per cell type, and depths that tell nothing of it.

In these data sets the number of counts of a cell gives its type away: sorted monocytes have a fifth of the counts of
CD34+ cells. A network learns that, and fails on a data set whose monocytes have as many. `at_depths` takes the cue
away.
"""

from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
from scipy import sparse

LABEL = "cell_type"
UNKNOWN = "unknown"
COPIES = {"pbmc_facs": 3, "zheng_sorted": 3, "kang_ctrl_12k": 1, "pbmc_donor_a_unlabelled": 1}
"""Data set -> files with its cells, each at other depths, so that none makes up most of the cells."""
NAMES = {
    "pbmc_facs": {
        "CD14+ Monocyte": "CD14+ monocyte",
        "CD19+ B": "B",
        "CD34+": "CD34+",
        "CD4+ T Helper2": "CD4+ helper T",
        "CD4+/CD25 T Reg": "regulatory T",
        "CD4+/CD45RA+/CD25- Naive T": "naive CD4+ T",
        "CD4+/CD45RO+ Memory": "memory CD4+ T",
        "CD56+ NK": "NK",
        "CD8+ Cytotoxic T": "CD8+ T",
        "CD8+/CD45RA+ Naive Cytotoxic": "naive CD8+ T",
    },
    "zheng_sorted": {
        "bcells": "B",
        "cytotoxict": "CD8+ T",
        "memoryt": "memory CD4+ T",
        "monocytes": UNKNOWN,  # LYZ, CST3 and HLA-DRA are high and S100A8 is low: mostly dendritic cells
        "naivecytotoxic": "naive CD8+ T",
        "naivet": "naive CD4+ T",
        "nk": "NK",
        "regulatoryt": "regulatory T",
        "thelper": "CD4+ helper T",
    },
    "kang_ctrl_12k": {
        "B cells": "B",
        "CD14+ Monocytes": "CD14+ monocyte",
        "CD4 T cells": "CD4+ T",
        "CD8 T cells": "CD8+ T",
        "Dendritic cells": "dendritic",
        "FCGR3A+ Monocytes": "FCGR3A+ monocyte",
        "Megakaryocytes": "megakaryocyte",
        "NK cells": "NK",
    },
}
"""Data set -> name of a type there -> its name in all data sets."""

MONOCYTE_GENES = ("LYZ", "S100A8", "S100A9", "FCN1", "CST3")
MONOCYTE_LEVEL = 50.0
"""Counts of these genes per 10,000: 99 in 100 sorted monocytes of pbmc_facs have over 105, few CD34+ cells over 20."""
LEAST_COUNTS = 300


def training_files(data: Path, folder: Path) -> list[str]:
    """Write the files to train on: each data set at depths that do not depend on the type, as often as COPIES says.

    Of kang_ctrl_12k only the cells that are not in kang_ctrlstim, by barcode and by counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, n_copies in COPIES.items():
        cells = ad.read_h5ad(data / f"{name}.h5ad")
        if name == "kang_ctrl_12k":
            cells = cells[not_in(cells, ad.read_h5ad(data / "kang_ctrlstim.h5ad"))].copy()
        cells.obs = cells.obs[[LABEL]].assign(**{LABEL: one_name(cells, NAMES.get(name, {}))})
        for copy in range(n_copies):
            files.append(str(folder / f"{name}-{copy}.h5ad"))
            at_depths(cells, np.random.default_rng(copy)).write_h5ad(files[-1])
    return files


def one_name(cells: ad.AnnData, names: dict[str, str]) -> list[str]:
    """Cell types by the names that all data sets share; `unknown` for monocytes among CD34+ cells."""
    labels = [names.get(label, UNKNOWN) for label in cells.obs[LABEL]]
    of_cells = zip(labels, monocytes(cells), strict=True)
    return [UNKNOWN if label == "CD34+" and is_monocyte else label for label, is_monocyte in of_cells]


def monocytes(cells: ad.AnnData) -> npt.NDArray[np.bool_]:
    """Cells that express the genes of monocytes as sorted monocytes do, bool [n]; X holds counts."""
    of_monocytes = cells.var["feature_name"].astype(str).isin(MONOCYTE_GENES).to_numpy()
    share = cells.X[:, of_monocytes].sum(1) / cells.X.sum(1)
    return np.asarray(np.asarray(share).ravel() * 1e4 > MONOCYTE_LEVEL)


def at_depths(cells: ad.AnnData, random: np.random.Generator) -> ad.AnnData:
    """The cells with numbers of counts that do not depend on their type.

    The number is drawn for each cell from a log-uniform distribution. Counts of random cells of the same type are
    added to a cell until it has as many, then it is thinned to the number. Cells without a type are only thinned.
    """
    total_N = np.asarray(cells.X.sum(1)).ravel()
    target_N = np.exp(random.uniform(np.log(LEAST_COUNTS), np.log(np.quantile(total_N, 0.99)), cells.n_obs))
    label_N = cells.obs[LABEL].to_numpy(str)
    rows, columns = [np.arange(cells.n_obs)], [np.arange(cells.n_obs)]
    for label in set(label_N) - {UNKNOWN}:
        same = np.flatnonzero(label_N == label)
        for row in same:
            drawn = random.permutation(same[same != row])
            n_added = np.searchsorted(np.cumsum(total_N[drawn]), target_N[row] - total_N[row]) + 1
            n_added = n_added if target_N[row] > total_N[row] else 0
            columns.append(drawn[:n_added])
            rows.append(np.full(len(columns[-1]), row))
    where = (np.concatenate(rows), np.concatenate(columns))
    pooled = (sparse.csr_matrix((np.ones(len(where[0]), np.float32), where)) @ cells.X).tocsr()
    kept_N = np.minimum(1, target_N / np.asarray(pooled.sum(1)).ravel())
    pooled.data = random.binomial(pooled.data.astype(int), np.repeat(kept_N, np.diff(pooled.indptr))).astype(np.float32)
    pooled.eliminate_zeros()
    return ad.AnnData(pooled, cells.obs, cells.var)


def not_in(cells: ad.AnnData, evaluated: ad.AnnData) -> npt.NDArray[np.bool_]:
    """Cells that are not in another data set, bool [n]."""
    genes = [gene for gene in cells.var_names if gene in set(evaluated.var_names)]
    seen_contents = set(contents(evaluated[:, genes]))
    seen_barcodes = {barcode(name) for name in evaluated.obs_names}
    fresh = [
        content not in seen_contents and barcode(name) not in seen_barcodes
        for name, content in zip(cells.obs_names, contents(cells[:, genes]), strict=True)
    ]
    return np.array(fresh)


def contents(cells: ad.AnnData) -> Iterator[bytes]:
    """The counts of each cell as bytes."""
    return (row.tobytes() for row in cells.X.toarray())


def barcode(name: str) -> str:
    """The barcode in the name of a cell, without the suffix of its sample."""
    return name.split("-")[0]
