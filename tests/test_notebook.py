"""A notebook of scanpy on cells in memory: embed, map, plots."""

import runpy
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

pytest.importorskip("scanpy", reason="needs scanpy: pip install 'scgpt-ray[eval]'")

NOTEBOOK = Path(__file__).with_name("notebook.py")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of scanpy with this matplotlib, pandas and umap
def test_embed_map_and_plots(demo_folder, tmp_path):
    with mpl.rc_context({"backend": "agg"}):
        index = str(demo_folder / "demo" / "index")
        names = runpy.run_path(str(NOTEBOOK), {"index": index, "figures": tmp_path})
    cells = names["cells"]
    assert list(cells.var_names) == names["genes"]
    assert set(cells.obs["mine"]) == {"as it was"}
    assert np.array_equal(cells.X.toarray(), cells.layers["logs"].toarray())
    assert cells.obsm["X_scGPT"].shape[0] == cells.obsm["X_umap"].shape[0] == cells.n_obs == 140
    right = cells.obs["predicted_cell_type"].astype(str) == cells.obs["cell_type"].astype(str)
    assert right.mean() > cells.obs["cell_type"].value_counts(normalize=True).iloc[0], "more than the majority class"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dotplot_markers.png", "umap-labels.png", "violin-confidence.png",
    ]  # fmt: skip
