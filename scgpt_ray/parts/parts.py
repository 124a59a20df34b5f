"""Parts: one Parquet file per partition, named by its number, written atomically and self-describing.

The footer of a part holds the fingerprint, the digest of its joinids and that of all bytes before it. A folder of parts
therefore needs no other record: a file with a valid footer is committed, and to resume is to list the folder. Pages
have checksums (CRC-32), which every reader verifies: a damaged byte is an error, never another vector.

In the file `embedding` is `list<float>`, since pyarrow 25 writes nulls of a fixed_size_list but cannot read them back
(Arrow issue 35692). In memory it is `fixed_size_list<float>[d]`; the two casts copy nothing.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import Partition, digest_joinids
from scgpt_ray.errors import CompletenessError, ReferenceSetError
from scgpt_ray.parts.footer import read_all, read_stamp
from scgpt_ray.progress import note
from scgpt_ray.records import Manifest
from scgpt_ray.schema import (
    CONTENT,
    COUNTERS,
    EMBEDDING,
    JOINID,
    N_GENES,
    Float32Matrix,
    Int64Array,
    matrix,
    obs_columns,
)
from scgpt_ray.storage import Folder

PARTS = "parts"
_FOOTER = b"scgpt_ray.part"
GENE_BINS = (0, *np.unique(np.rint(2 ** (np.arange(46) / 3)).astype(int)).tolist())
"""Least number of genes per cell of each bin that the footer counts: three bins per octave."""

_STORED = pa.list_(pa.field("element", pa.float32()))


@dataclass(frozen=True)
class Part:
    """The footer of a part.

    Attributes:
        fingerprint: Digest of the run's fingerprint.
        partition: Number of the partition.
        joinids: Digest of the joinids.
        n_cells: Number of rows.
        n_empty: Rows without an embedding, of cells without counts of genes in the vocabulary.
        n_tokens: Number of tokens embedded.
        n_cut: Cells with more genes than fit into their tokens.
        n_genes: Cells in each of `GENE_BINS`, by their genes of the vocabulary with counts.
        dimension: Width of the embedding.
        data: SHA-256 of the bytes of the file before its footer.
        actor: What the actor computed with, see `Embedder.describe`, without COUNTERS; empty if not known.
    """

    fingerprint: str
    partition: int
    joinids: str
    n_cells: int
    n_empty: int
    n_tokens: int
    n_cut: int
    n_genes: tuple[int, ...]
    dimension: int
    data: str
    actor: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_genes", tuple(self.n_genes))  # JSON has lists

    @property
    def name(self) -> str:
        """Name of the file, which depends on the partition alone."""
        return part_name(self.partition)


def part_name(partition: int) -> str:
    """File name of the part of a partition."""
    return f"part-{partition:05d}.parquet"


def part_number(name: str) -> int:
    """Number of the partition of a part."""
    return int(name.removeprefix("part-").removesuffix(".parquet"))


def write_part(
    parts: Folder,
    table: pa.Table,
    partition: Partition,
    *,
    fingerprint: str,
    n_tokens: int,
    n_cut: int = 0,
    actor: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Part, int]:
    """Commit one partition.

    Args:
        parts: Folder of the parts.
        table: EMBEDDINGS of the partition, in order of joinid.
        partition: The planned partition.
        fingerprint: Digest of the run's fingerprint.
        n_tokens: Number of tokens embedded.
        n_cut: Cells with more genes than fit into their tokens.
        actor: Description of the actor.

    Returns:
        The footer, and the size of the file in bytes.

    Raises:
        CompletenessError: If the table does not hold exactly the planned cells.
        OSError: If the part cannot be written; nothing is left behind.
    """
    joinids = digest_joinids(table[JOINID].to_numpy())
    if (joinids, table.num_rows) != (partition.digest, partition.n_cells):
        raise CompletenessError(
            f"partition {partition.number} has {table.num_rows} cells ({joinids}); "
            f"planned were {partition.n_cells} ({partition.digest})"
        )
    part = Part(
        fingerprint=fingerprint,
        partition=partition.number,
        joinids=joinids,
        n_cells=table.num_rows,
        n_empty=table[EMBEDDING].null_count,
        n_tokens=n_tokens,
        n_cut=n_cut,
        n_genes=tuple(np.histogram(table[N_GENES].to_numpy(), [*GENE_BINS, np.inf])[0].tolist()),
        dimension=table[EMBEDDING].type.list_size,
        data="",
        actor={name: value for name, value in actor.items() if name not in COUNTERS},
    )
    content, part = _file(_encoded(table), part, obs_columns(table))
    parts.write(part.name, content)
    return part, len(content)


def _file(encoded: pa.Table, part: Part, dictionaries: list[str]) -> tuple[bytes, Part]:
    """The content of a part, and the part with the digest of its data."""
    # Embeddings do not compress; ids and dictionaries do.
    compression = {name: "none" if name == EMBEDDING else "zstd" for name in encoded.column_names}
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        encoded.schema.remove_metadata(),
        compression={**compression, f"{EMBEDDING}.list.element": "none"},
        use_dictionary=dictionaries,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(encoded.replace_schema_metadata())
        part = replace(part, data=hashlib.sha256(sink.getbuffer()).hexdigest())
        writer.add_key_value_metadata({_FOOTER: json.dumps(asdict(part))})
    return sink.getvalue(), part


def _encoded(table: pa.Table) -> pa.Table:
    """Dictionary-encode the carried text columns, and cast the embedding to what pyarrow can read back."""
    place = table.schema.get_field_index(EMBEDDING)
    table = table.set_column(place, EMBEDDING, table[EMBEDDING].cast(_STORED))
    for position, column in enumerate(table.schema):
        if column.name in obs_columns(table) and (
            pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        ):
            table = table.set_column(position, column.name, table[column.name].dictionary_encode())
    return table


def read_footer(parts: Folder, name: str) -> Part | None:
    """Read the footer of a part; None if the file is torn or not a part."""
    found = read_stamp(parts, name, _FOOTER)
    if found is None:
        return None
    part, n_rows = Part(**found[0]), found[1]
    return part if part.name == name and part.n_cells == n_rows else None


def committed(parts: Folder) -> dict[int, Part]:
    """The committed parts, by partition; torn files are ignored."""
    names = [name for name in parts.names() if name.startswith("part-")]
    return {part.partition: part for part in read_all(lambda name: read_footer(parts, name), names)}


def part_columns(folder: Folder, manifest: Manifest) -> set[str]:
    """Names of the columns of the parts of finished embeddings, of which there is at least one."""
    with folder.folder(PARTS).open(next(iter(manifest.parts))) as stream:
        return set(pq.read_schema(stream).names)


def read_checked(
    folder: Folder, name: str, columns: list[str] | None, remedy: str
) -> tuple[pa.Table, dict[bytes, bytes]]:
    """Read a Parquet file, verifying the checksums of its pages, and its metadata.

    Raises:
        ReferenceSetError: If the file is missing or damaged; the remedy is the caller's.
    """
    try:
        with folder.open(name) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            return file.read(columns), file.metadata.metadata
    except (OSError, pa.ArrowException) as error:
        raise ReferenceSetError(
            f"{folder.where(name)} cannot be read: {error}", expected="the part as it was written", remedy=remedy
        ) from error


def require_content(folder: Folder, manifest: Manifest) -> None:
    """Require that finished embeddings carry the digests of their cells' contents.

    Raises:
        ReferenceSetError: If they do not.
    """
    if CONTENT not in part_columns(folder, manifest):
        raise ReferenceSetError(
            f"the parts of {folder.uri} have no column {CONTENT}",
            expected="embeddings that this version made",
            remedy="embed the atlas anew",
        )


def read_part(parts: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a part, or some of its columns.

    Raises:
        ReferenceSetError: If the file is missing or damaged.
    """
    place = parts.uri.removesuffix(f"/{PARTS}")
    remedy = f"scgpt-ray validate --embeddings {place} --repair makes it again"
    table, metadata = read_checked(parts, name, columns, remedy)
    if EMBEDDING in table.column_names:
        dimension = json.loads(metadata[_FOOTER])["dimension"]
        place = table.schema.get_field_index(EMBEDDING)
        table = table.set_column(place, EMBEDDING, table[EMBEDDING].cast(pa.list_(pa.float32(), dimension)))
    return table


def read_rows(folder: Folder, manifest: Manifest, rows: Int64Array, columns: list[str]) -> pa.Table:
    """Some cells of finished embeddings, by their sorted row numbers over all parts; only their parts are read."""
    tables, start = [], 0
    for name, n_cells in manifest.parts.items():
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + n_cells)] - start
        if len(here):
            tables.append(read_part(folder.folder(PARTS), name, columns).take(pa.array(here)))
        start += n_cells
    return pa.concat_tables(tables)


def read_vectors(parts: Folder, name: str) -> tuple[Int64Array, Float32Matrix]:
    """Read the ids [n] and unit vectors [n, d] of those cells of a part that have an embedding."""
    table = read_part(parts, name, [JOINID, EMBEDDING])
    return vectors_of(table)


def vectors_of(table: pa.Table) -> tuple[Int64Array, Float32Matrix]:
    """Ids [n] and unit vectors [n, d] of those cells of a table that have an embedding."""
    present = table.filter(table[EMBEDDING].is_valid())
    return present[JOINID].to_numpy(), np.asarray(matrix(present[EMBEDDING]), np.float32)


def iterate_parts(parts: Folder, names: list[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Read parts one after the other."""
    for name in names:
        note(name)
        yield read_part(parts, name, columns)
