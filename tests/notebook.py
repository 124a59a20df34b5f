"""A notebook as a script: cells in memory are embedded, labelled and plotted. `test_notebook.py` executes it.

Its variables before the first cell: `index`, an index of the demo's reference cells, and `figures`, a folder.
"""

# ruff: noqa: F821, T201 - index and figures are given
# mypy: disable-error-code="name-defined"

# %% Cells in memory: the query of the demo, with a layer and a column that are the user's own.
import scanpy as sc

from scgpt_ray import tl
from scgpt_ray.pipelines.demo_cells import blood_cells

cells = blood_cells(0)
cells = cells[cells.obs["split"] == "query"].copy()
cells.layers["logs"] = cells.X.copy()
cells.obs["mine"] = "as it was"
genes = list(cells.var_names)

# %% Embed.
tl.embed(cells, "demo")
print(cells.uns["scgpt_ray"]["coverage"])

# %% Map; the checkpoint is that of the embeddings.
tl.map(cells, index)
print(cells.obs["predicted_cell_type"].value_counts())

# %% Neighbours and UMAP of scanpy, and its plots.
sc.settings.figdir = figures
sc.pp.neighbors(cells, use_rep="X_scGPT")
sc.tl.umap(cells)
labels = ["predicted_cell_type", "predicted_cell_type_confidence"]
sc.pl.umap(cells, color=labels, wspace=0.7, save="-labels.png", show=False)
sc.pl.dotplot(cells, ["CD3D", "MS4A1", "LYZ"], groupby="predicted_cell_type", save="markers.png", show=False)
sc.pl.violin(cells, "predicted_cell_type_confidence", groupby="cell_type", save="-confidence.png", show=False)
