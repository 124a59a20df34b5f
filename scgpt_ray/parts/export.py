"""Export of embeddings to one table or file."""

import tempfile
from pathlib import Path, PurePosixPath

import pyarrow as pa

from scgpt_ray.atlas.anndata_file import write_embedding_h5ad
from scgpt_ray.errors import OutputError
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS, iterate_parts
from scgpt_ray.schema import JOINID
from scgpt_ray.storage import Folder


def read_embeddings(folder: Folder) -> pa.Table:
    """Read all parts of a finished run as one table, sorted by joinid.

    Args:
        folder: Output folder of `embed`.

    Raises:
        ReferenceSetError: If the folder is not that of a finished run.
    """
    manifest = require_manifest(folder)
    tables = [table.unify_dictionaries() for table in iterate_parts(folder.folder(PARTS), list(manifest.parts))]
    return pa.concat_tables(tables).replace_schema_metadata(None).sort_by(JOINID)


def export_h5ad(folder: Folder, file: str) -> int:
    """Write an .h5ad file with obsm["X_scGPT"] and the carried obs columns; cells without an embedding get NaN rows.

    Needs memory for a few copies of all embeddings, each of 4 x d bytes per cell.

    Args:
        folder: Output folder of `embed`.
        file: Path or URI of the .h5ad file.

    Returns:
        Number of cells written.

    Raises:
        ReferenceSetError: If the folder is not that of a finished run.
        OutputError: If the file cannot be written.
    """
    place = Folder.at(str(PurePosixPath(file).parent) if "://" not in file else file.rpartition("/")[0])
    place.require_writable()
    if place.is_local and (place.path / PurePosixPath(file).name).is_dir():
        raise OutputError(f"{file} is a folder", expected="the name of a file", remedy="name a file, such as x.h5ad")
    embeddings = read_embeddings(folder)
    write_h5ad(place, PurePosixPath(file).name, embeddings)
    return int(embeddings.num_rows)


def write_h5ad(place: Folder, name: str, embeddings: pa.Table) -> None:
    """Write EMBEDDINGS as an .h5ad file, atomically."""
    with tempfile.TemporaryDirectory(prefix="scgpt-ray-") as scratch:
        written = Path(scratch) / name
        write_embedding_h5ad(written, embeddings)
        place.write(name, written.read_bytes())
