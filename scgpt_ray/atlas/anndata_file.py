"""Reading and writing .h5ad files."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
from anndata import AnnData

from scgpt_ray.errors import AtlasError
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, OBS_ID, matrix, obs_columns

OBSM_KEY = "X_scGPT"
"""Key of obsm under which upstream scGPT stores cell embeddings."""


def read_anndata(path: Path) -> AnnData:
    """Read an .h5ad file into memory.

    Raises:
        AtlasError: If the file is missing, damaged or not an .h5ad file.
    """
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise AtlasError(
            f"{path}: {error}", expected="a complete .h5ad file", remedy="check the path, or copy the file again"
        ) from error


def write_embedding_h5ad(path: Path, embeddings: pa.Table) -> None:
    """Write an .h5ad file with obs and obsm["X_scGPT"], without X.

    Args:
        path: File to write.
        embeddings: EMBEDDINGS. Cells without an embedding get rows of NaN. obs_names are `obs_id` if the table has
            that column, else soma_joinid.

    Raises:
        OSError: If the file cannot be written.
    """
    joinids = embeddings[JOINID].to_numpy()
    columns = obs_columns(embeddings)
    names = embeddings[OBS_ID].to_pylist() if OBS_ID in columns else [str(joinid) for joinid in joinids]
    obs = pa.table({name: _storable(embeddings[name]) for name in columns if name != OBS_ID}).to_pandas()
    obs = obs.assign(**{JOINID: joinids, N_GENES: embeddings[N_GENES].to_numpy()})
    obs.index = pd.Index(names, dtype=object)
    vectors = np.full((embeddings.num_rows, embeddings[EMBEDDING].type.list_size), np.nan, np.float32)
    present = embeddings[EMBEDDING].is_valid().to_numpy()
    vectors[present] = matrix(embeddings[EMBEDDING].drop_null())
    AnnData(obs=obs, obsm={OBSM_KEY: vectors}).write_h5ad(path)


def _storable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a column to what .h5ad files store: numbers and booleans unchanged, other types as categorical text."""
    kind = column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if is_number or (pa.types.is_boolean(kind) and not column.null_count):
        return column
    return column.cast(pa.string()).dictionary_encode()


__all__ = ["OBSM_KEY", "AnnData", "read_anndata", "write_embedding_h5ad"]
