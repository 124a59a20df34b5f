"""Writing SOMA experiments."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import tiledbsoma.io

from scgpt_ray.errors import OutputError

SMALL_LAYOUT = {"tiledb": {"create": {"dims": {"soma_dim_0": {"tile": 256}}}}}
"""Small tiles of rows, for atlases that are read in small partitions."""

_ZSTD = {"_type": "ZstdFilter", "level": 9}
CENSUS_LAYOUT = {
    "tiledb": {
        "create": {
            "capacity": 2**16,
            "dims": {
                "soma_dim_0": {"tile": 2048, "filters": [_ZSTD]},
                "soma_dim_1": {"tile": 2048, "filters": ["ByteShuffleFilter", _ZSTD]},
            },
            "attrs": {"soma_data": {"filters": ["ByteShuffleFilter", _ZSTD]}},
            "cell_order": "row-major",
            "tile_order": "row-major",
            "allows_duplicates": True,
        }
    }
}
"""Layout of X in the CELLxGENE Census (chanzuckerberg/cellxgene-census, build_soma/globals.py)."""


def write_soma(
    path: Path,
    adata: anndata.AnnData,
    *,
    measurement: str = "RNA",
    layer: str = "raw",
    layout: Mapping[str, Any] = SMALL_LAYOUT,
) -> None:
    """Write X, obs and var as a new experiment; the folder appears when it is complete.

    Args:
        path: Folder to create.
        adata: Cells x genes. obs_names become the obs column `obs_id`, var_names the var column `var_id`.
        measurement: Name of the measurement.
        layer: Name of the layer for X.
        layout: Tiles and filters of the arrays, as tiledbsoma's platform_config.

    Raises:
        OutputError: If the path exists.
    """
    if path.exists():
        raise OutputError(f"{path} already exists", expected="a new folder", remedy="delete it, or name another")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        written = Path(scratch) / path.name
        tiledbsoma.io.from_anndata(
            str(written), adata, measurement, X_layer_name=layer, obs_id_name="obs_id", var_id_name="var_id",
            platform_config=layout,
        )  # fmt: skip
        written.rename(path)
