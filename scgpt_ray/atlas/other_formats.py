"""Cells in a format that is not read: what to do about them."""

from pathlib import Path

import h5py

_TILEDB = {"__group", "__schema"}
"""Folders in which TileDB describes a group and an array."""

_OF_EMBED = "plan.json"


def may_be_soma(path: Path) -> bool:
    """Whether a path is of TileDB, as a SOMA experiment and its members are, or may not be looked into."""
    try:
        return path.is_dir() and any(entry.name in _TILEDB for entry in path.iterdir())
    except PermissionError:
        return True


def remedy(path: Path) -> str:
    """How to get cells that can be read from a file or folder, as text for an error."""
    if path.is_dir():
        if (path / _OF_EMBED).is_file():
            return "name the atlas that was embedded, or give this folder to the --embeddings of another verb"
        if any(path.glob("*matrix.mtx*")):
            return _convert(f'scanpy.read_10x_mtx("{path}")', path)
        if path.suffix == ".zarr":
            return _convert(f'anndata.read_zarr("{path}")', path)
    elif {"obs", "var"} <= _hdf5_keys(path):
        return f"rename it to {path.stem}.h5ad"
    elif path.suffix == ".h5":
        return _convert(f'scanpy.read_10x_h5("{path}")', path)
    elif ".mtx" in path.suffixes:
        return _convert(f'scanpy.read_10x_mtx("{path.parent}")', path.parent)
    return "check the path, or read the cells with scanpy and write them with AnnData.write_h5ad"


def _hdf5_keys(path: Path) -> set[str]:
    try:
        with h5py.File(path) as file:
            return {*file}
    except OSError:  # another format, or a damaged file
        return set()


def _convert(read: str, path: Path) -> str:
    return f'convert it: {read}.write_h5ad("{path.stem}.h5ad")'
