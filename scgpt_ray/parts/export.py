"""Finished embeddings as a table in memory, and as an .h5ad file."""

from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.embedding_h5ad import is_embedding_h5ad, write_embedding_h5ad
from scgpt_ray.errors import OutputError
from scgpt_ray.parts.checksums import line_of, line_of_stream
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS, iterate_parts
from scgpt_ray.schema import EMBEDDING, JOINID
from scgpt_ray.storage import Folder

SUM_SUFFIX = ".sha256"
"""Ending of the file with the checksum of a single file, which is next to it."""


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


def export_h5ad(folder: Folder, file: str, *, half: bool = False) -> int:
    """Write an .h5ad file with obsm["X_scGPT"] and the carried obs columns, and its checksum to FILE.sha256.

    One part is in memory at a time. For an object store the file is first written to the local disk. An earlier export
    is replaced, unless its checksum next to it is no longer right; any other file is refused.

    Args:
        folder: Output folder of `embed`.
        file: Path or URI of the .h5ad file.
        half: Store vectors as float16.

    Returns:
        Number of cells written; those without an embedding have rows of NaN.

    Raises:
        ReferenceSetError: If the folder is not that of a finished run.
        OutputError: If the file cannot be written, or would replace one that is not an unchanged export.
    """
    names = list(require_manifest(folder).parts)
    place = Folder.at(str(PurePosixPath(file).parent) if "://" not in file else file.rpartition("/")[0])
    place.require_writable()
    name = PurePosixPath(file).name
    if place.is_local and (place.path / name).is_dir():
        raise OutputError(f"{file} is a folder", expected="the name of a file", remedy="name a file, such as x.h5ad")
    _require_replaceable(place, name)
    parts = folder.folder(PARTS)
    with parts.open(names[0]) as stream:
        columns = [column for column in pq.read_schema(stream).names if column != EMBEDDING]

    def tables(with_vectors: bool) -> Iterator[pa.Table]:
        return iterate_parts(parts, names, None if with_vectors else columns)

    with place.staged(name) as path:
        n_cells = write_embedding_h5ad(path, tables, half=half)
        checksum = line_of(path, name)
        if place.has(name + SUM_SUFFIX):  # of the export that is replaced: killed between two files, none is wrong
            place.remove(name + SUM_SUFFIX)
    place.write(name + SUM_SUFFIX, checksum.encode())
    return n_cells


def _require_replaceable(place: Folder, name: str) -> None:
    if place.has(name) and not _is_unchanged_export(place, name):
        raise OutputError(
            f"{place.where(name)} exists and is not an unchanged earlier export",
            expected="a new file, or an export as it was written",
            remedy="name another file, or delete this one",
        )


def _is_unchanged_export(place: Folder, name: str) -> bool:
    with place.open(name) as stream:
        if not is_embedding_h5ad(stream):
            return False
    if not place.has(name + SUM_SUFFIX):
        return True
    with place.open(name) as stream:
        return line_of_stream(stream, name).encode() == place.read(name + SUM_SUFFIX)
