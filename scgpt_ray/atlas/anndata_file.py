"""Reading .h5ad files into memory."""

from pathlib import Path

import anndata
from anndata import AnnData

from scgpt_ray.errors import AtlasError


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


__all__ = ["AnnData", "read_anndata"]
