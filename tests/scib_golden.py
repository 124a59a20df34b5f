"""Numbers that scib itself computes, for tests/test_evaluation_integration_metrics.py.

python3 -m venv scib-env && scib-env/bin/pip install scib==1.1.7 scanpy==1.11.5 leidenalg==0.12.0
scib-env/bin/python tests/scib_golden.py ../shared/data > tests/scib_golden.json

scib needs no package of this project, and the project does not need scib. `embeddings` is what both sides evaluate: a
function of the counts, the same on every machine, since it only rounds far from where sums may differ.
"""

import hashlib
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np

LABEL = "cell_type"
SETS = {"kang_ctrl_12k": ("donor", 1000), "kang_ctrlstim": ("condition", 750)}
"""File -> batch column, and the number of cells, evenly spaced."""
VARIABLE, D = 1000, 20


def embeddings(cells):
    """Principal components, and a projection on random signs, of log1p counts; name -> float32 [n, D]."""
    logs = np.round(256 * np.log1p(cells.X.toarray().astype(np.float64)))  # whole numbers: sums of them are exact
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (logs.shape[1], D))
    variable = logs[:, np.sort(np.argsort(-logs.var(axis=0).round(3), kind="stable")[:VARIABLE])]
    centred = (variable - variable.mean(axis=0)) / 256
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :D]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(D)])
    found = {"principal components": np.round(centred @ axes, 2), "random projection": logs @ signs / 256}
    return {name: vectors.astype(np.float32) for name, vectors in found.items()}


def golden_cases(data):
    """Yields name, digest of the vectors, the vectors, labels and batch keys."""
    for name, (batch_column, n_cells) in SETS.items():
        cells = ad.read_h5ad(Path(data) / f"{name}.h5ad")
        cells = cells[np.arange(n_cells) * cells.n_obs // n_cells].copy()
        labels, keys = (cells.obs[column].astype(str).to_numpy() for column in (LABEL, batch_column))
        for embedding, vectors in embeddings(cells).items():
            digest = hashlib.sha256(vectors.tobytes()).hexdigest()
            yield f"{name}, {embedding}", digest, vectors, labels, keys


def scored(vectors, labels, keys):
    """The five metrics of AvgBIO and AvgBATCH as scib computes them."""
    import scanpy as sc
    import scib

    cells = ad.AnnData(obs={LABEL: labels, "batch": keys}, obsm={"X_emb": vectors})
    for column in cells.obs:
        cells.obs[column] = cells.obs[column].astype("category")
    sc.pp.neighbors(cells, use_rep="X_emb")
    table = scib.metrics.metrics(
        cells, cells, "batch", LABEL, embed="X_emb", nmi_=True, ari_=True, silhouette_=True, graph_conn_=True
    )[0]
    names = {
        "NMI_cluster/label": "nmi",
        "ARI_cluster/label": "ari",
        "ASW_label": "asw_label",
        "ASW_label/batch": "asw_batch",
        "graph_conn": "graph_connectivity",
    }
    return {ours: float(table[theirs]) for theirs, ours in names.items()}


def main():
    warnings.simplefilter("ignore")
    out, sys.stdout = sys.stdout, sys.stderr  # scib prints
    cases = {
        name: {"vectors_sha256": digest, **scored(vectors, labels, keys)}
        for name, digest, vectors, labels, keys in golden_cases(sys.argv[1])
    }
    versions = {name: version(name) for name in ("scib", "scanpy", "leidenalg", "umap-learn", "scikit-learn")}
    out.write(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
