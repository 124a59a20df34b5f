"""Writing a SOMA experiment from cells in memory."""

from pathlib import Path

import anndata
import tiledbsoma.io

_CREATE = {"tiledb": {"create": {"dims": {"soma_dim_0": {"tile": 256}}}}}
"""Small tiles of rows: a small atlas is read in small partitions."""


def write_soma(path: Path, adata: anndata.AnnData, *, measurement: str = "RNA", layer: str = "raw") -> None:
    """Write X, obs and var as a new experiment.

    Args:
        path: Folder to make; must not exist.
        adata: Cells x genes. obs_names become the obs column `obs_id`, var_names the var column `var_id`.
        measurement: Name of the measurement.
        layer: Name that X gets.
    """
    tiledbsoma.io.from_anndata(
        str(path), adata, measurement, X_layer_name=layer, obs_id_name="obs_id", var_id_name="var_id",
        platform_config=_CREATE,
    )  # fmt: skip
