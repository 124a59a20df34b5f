"""Settings of TileDB act in a reader."""

import anndata
import numpy as np
import scipy.sparse as sp
import tiledbsoma as soma

from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings


def test_no_read_merges_tiles_in_a_thread_that_outlives_it(make_soma, tmp_path, monkeypatch):
    monkeypatch.delenv("TILEDB_SM_QUERY_SPARSE_GLOBAL_ORDER_PREPROCESS_TILE_MERGE")
    uri = make_soma(anndata.AnnData(sp.csr_matrix(np.eye(3, dtype=np.float32))), tmp_path / "atlas")
    source = locate(uri, CellSettings())
    soma.tiledbsoma_stats_enable()
    try:
        soma.tiledbsoma_stats_reset()
        source.totals(source.joinids())  # reads obs, var and X
        (stats,) = soma.tiledbsoma_stats_as_py()
    finally:
        soma.tiledbsoma_stats_disable()
    timers = [name for name in stats["timers"] if name.startswith("Context.Query.Reader.")]
    assert timers
    assert not [name for name in timers if "preprocess" in name]
