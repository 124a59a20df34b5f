"""Finished embeddings as others publish them: an array in the format of the Census, and a data set of the hub."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.embedding_soma import write_embedding_soma
from scgpt_ray.parts.checksums import new_folder
from scgpt_ray.parts.dataset_card import dataset_card
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS, iterate_parts
from scgpt_ray.parts.provenance import DOI, NOT_STATED, Provenance
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID
from scgpt_ray.storage import Folder

_SHARD_BYTES = 500 * 10**6
"""Size of a Parquet file; that of the library `datasets` (its default max_shard_size)."""

_MOST_TITLE, _MOST_DESCRIPTION = 127, 2047  # characters (tools/census_contrib/src/census_contrib/metadata.py)


def export_soma(
    folder: Folder,
    output: Folder,
    n_rows: int,
    *,
    title: str | None = None,
    license: str = NOT_STATED,  # noqa: A002 - as the option
    contact: Sequence[str] = (),
    half: bool = False,
) -> int:
    """Write an array as the CELLxGENE Census has it, which `get_embedding` opens by its URI, and SHA256SUMS.

    Cells without an embedding are not stored. One part is in memory at a time.

    Args:
        folder: Output folder of `embed`.
        output: Folder of the array.
        n_rows: Rows of obs in the atlas.
        title: Title; default: scGPT embeddings of the atlas.
        license: Licence of the embeddings.
        contact: Name, e-mail address and affiliation; empty for not stated.
        half: Round to the precision of bfloat16, as embeddings of the Census are.

    Returns:
        Number of cells written.

    Raises:
        InputError: If the folder is not that of a finished run, or the output cannot be written.
    """
    manifest = require_manifest(folder)
    info = embedding_info(manifest, Provenance.of(folder, manifest.fingerprint, manifest.coverage))
    info |= {"title": title or info["title"], "additional_information": f"Licence: {license}"}
    info["primary_contact"] |= dict(zip(info["primary_contact"], contact, strict=False))
    tables = iterate_parts(folder.folder(PARTS), list(manifest.parts), [JOINID, EMBEDDING])
    with new_folder(output, last="__commits/") as place:
        write_embedding_soma(place, tables, (n_rows, manifest.dimension), info, half=half)
    return int(info["n_embeddings"])


def embedding_info(manifest: Manifest, provenance: Provenance) -> dict[str, Any]:
    """The metadata of an embedding of the Census (tools/census_contrib/embedding_metadata.md).

    `census_version` and `experiment_name` of another atlas are none of the Census: its reader refuses them.
    """
    cells, digest = manifest.fingerprint.cells, manifest.fingerprint.digest
    facts = "; ".join(f"{name}: {text}" for name, text in provenance.facts().items())
    return {
        "id": f"scgpt-ray-{digest[:12]}",
        "embedding_name": "scgpt",
        "title": f"{provenance.encoder} embeddings of {provenance.atlas}"[:_MOST_TITLE],
        "description": f"Zero-shot cell embeddings of scGPT, unit vectors. {facts}"[:_MOST_DESCRIPTION],
        "primary_contact": dict.fromkeys(("name", "email", "affiliation"), NOT_STATED),
        "additional_contacts": [],
        "DOI": DOI,
        "additional_information": "",
        "model_link": "",
        "data_type": "obs_embedding",
        "census_version": cells.get("release") or NOT_STATED,
        "experiment_name": PurePosixPath(provenance.atlas).name,
        "measurement_name": cells.get("measurement", "RNA"),
        "n_embeddings": manifest.n_cells - manifest.n_empty,
        "n_features": manifest.dimension,
        "submission_date": datetime.now(UTC).date().isoformat(),
    }


def export_dataset(
    folder: Folder,
    output: Folder,
    *,
    title: str | None = None,
    license: str = NOT_STATED,  # noqa: A002 - as the option
    half: bool = False,
) -> int:
    """Write a data set as the Hugging Face Hub has it: data/train-*.parquet, README.md and SHA256SUMS.

    All columns are written, text as plain strings; cells without an embedding have null. One part is in memory at a
    time.

    Args:
        folder: Output folder of `embed`.
        output: Folder of the data set.
        title: Title of the card; default: scGPT embeddings of the atlas.
        license: Licence of the embeddings, such as cc-by-4.0.
        half: Store vectors as float16.

    Returns:
        Number of cells written.

    Raises:
        InputError: If the folder is not that of a finished run, or the output cannot be written.
    """
    manifest = require_manifest(folder)
    provenance = Provenance.of(folder, manifest.fingerprint, manifest.coverage)
    shards = list(_shards(manifest, 2 if half else 4))
    number = pa.float16() if half else pa.float32()
    with new_folder(output) as place:
        (place / "data").mkdir()
        names = [f"train-{shard:05d}-of-{len(shards):05d}.parquet" for shard in range(len(shards))]
        schemas = [
            _write_shard(place / "data" / name, iterate_parts(folder.folder(PARTS), parts), number)
            for name, parts in zip(names, shards, strict=True)
        ]
        card = dataset_card(manifest, provenance, schemas[0], title=title, license=license)
        (place / "README.md").write_text(card, encoding="utf-8")
    return manifest.n_cells


def _shards(manifest: Manifest, n_bytes: int) -> Iterator[list[str]]:
    """Names of the parts of each shard."""
    cells = max(1, _SHARD_BYTES // (n_bytes * manifest.dimension))
    ends = np.cumsum(list(manifest.parts.values()))
    numbered = zip(((ends - 1) // cells).tolist(), manifest.parts, strict=True)
    for _, group in groupby(numbered, key=lambda pair: pair[0]):
        yield [name for _, name in group]


def _write_shard(file: Path, tables: Iterator[pa.Table], number: pa.DataType) -> pa.Schema:
    """Write a Parquet file, a row group per table; returns its schema."""
    first = next(tables)
    schema = pa.schema([(column.name, _published(column, number)) for column in first.schema])
    texts = [column.name for column in schema if pa.types.is_string(column.type)]
    compression = dict.fromkeys(schema.names, "zstd") | {f"{EMBEDDING}.list.element": "none"}
    with pq.ParquetWriter(file, schema, compression=compression, use_dictionary=texts) as writer:
        writer.write_table(first.replace_schema_metadata(None).cast(schema))
        for table in tables:
            writer.write_table(table.replace_schema_metadata(None).cast(schema))
    return schema


def _published(column: pa.Field, number: pa.DataType) -> pa.DataType:
    """Type of a column in a data set: no dictionaries, and lists whose nulls pyarrow can read back (see `parts`)."""
    if column.name == EMBEDDING:
        return pa.list_(pa.field("element", number))
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type
