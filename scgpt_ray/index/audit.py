"""The audit of an index folder: it is opened again by code that did not write it."""

from collections.abc import Iterator

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.folder import Folder
from scgpt_ray.index.description import TEMPLATE, IndexDescription, ShardDescription, require_index
from scgpt_ray.index.shard import ids_of, open_shard
from scgpt_ray.schema import JOINID, N_GENES, Int64Array
from scgpt_ray.store.fingerprint import Fingerprint
from scgpt_ray.store.manifest import Manifest, read_manifest
from scgpt_ray.store.parts import PARTS, read_part


def audit_index(folder: Folder) -> list[str]:
    """Check an output folder of `index`.

    Template, shards and labels can be read and are of one width; a shard and its labels hold the same cells, no cell is
    in two shards; and where the embeddings are still in their place, they are those that were indexed. Memory: the
    largest shard, and 8 bytes for each indexed cell.

    Returns:
        What is wrong, a line each; empty when all is well.

    Raises:
        ReferenceSetError: If the folder is not that of a finished index.
    """
    index = require_index(folder)
    problems = list(_audit_template(folder, index))
    ids_of_shards = []
    for shard in index.shards:
        ids, found = _audit_shard(folder, shard, index)
        ids_of_shards.append(ids)
        problems += found
    ids_N = np.sort(np.concatenate([np.empty(0, np.int64), *ids_of_shards]))
    doubled = np.unique(ids_N[1:][ids_N[1:] == ids_N[:-1]])
    if len(doubled):
        problems.append(f"{_cells(len(doubled))} indexed more than once, the first is soma_joinid {doubled[0]}")
    problems += _audit_source(Folder.at(index.embeddings), index, ids_N)
    return problems


def _cells(n: int) -> str:
    return "1 cell is" if n == 1 else f"{n} cells are"


def _audit_template(folder: Folder, index: IndexDescription) -> Iterator[str]:
    template = _opened(folder, TEMPLATE)
    if isinstance(template, str):
        yield template
        return
    if template.d != index.d:
        yield f"{TEMPLATE} is of width {template.d}, the description says {index.d}"
    if not template.is_trained or template.ntotal:
        yield f"{TEMPLATE} is not a trained, empty index"


def _audit_shard(folder: Folder, shard: ShardDescription, index: IndexDescription) -> tuple[Int64Array, list[str]]:
    """Ids of a shard, int64 [n], none where it cannot be read; and what is wrong with it."""
    labelled, problems = _read_labels(folder, shard, index)
    opened = _opened(folder, shard.name)
    if isinstance(opened, str):
        return np.empty(0, np.int64), [opened, *problems]
    if opened.d != index.d:
        problems.append(f"{shard.name} is of width {opened.d}, the description says {index.d}")
    if opened.ntotal != shard.n_cells:
        problems.append(f"{shard.name} holds {opened.ntotal} cells, the description says {shard.n_cells}")
    ids = ids_of(opened)
    if labelled is not None and not np.array_equal(np.sort(ids), np.sort(labelled)):
        problems.append(f"{shard.name} and {shard.labels} hold different cells")
    return ids, problems


def _opened(folder: Folder, name: str) -> faiss.Index | str:
    """A faiss file, or what is wrong with it."""
    if not folder.has(name):
        return f"{name} is missing"
    try:
        return open_shard(folder.path / name if folder.is_local else folder.read(name))
    except ReferenceSetError as error:
        return f"{name}: {error.found}"


def _read_labels(
    folder: Folder, shard: ShardDescription, index: IndexDescription
) -> tuple[Int64Array | None, list[str]]:
    """Joinids of a label table, int64 [n], where it has them; and what is wrong with it."""
    if not folder.has(shard.labels):
        return None, [f"{shard.labels} is missing"]
    try:
        with folder.open(shard.labels) as stream:
            table = pq.read_table(stream)  # all columns: a damaged one shows only when it is read
    except (OSError, pa.ArrowInvalid) as error:
        return None, [f"{shard.labels} cannot be read: {' '.join(str(error).split())}"]
    lacking = [name for name in (JOINID, *index.label_columns) if name not in table.column_names]
    problems = [f"{shard.labels} has no column {', '.join(lacking)}"] if lacking else []
    return (None if JOINID in lacking else table[JOINID].to_numpy()), problems


def _audit_source(embeddings: Folder, index: IndexDescription, ids_N: Int64Array) -> Iterator[str]:
    """Compare with the embeddings that were indexed; nothing where they are no longer in their place.

    Args:
        embeddings: Where they were.
        index: The description.
        ids_N: int64 [N], sorted ids of all shards.
    """
    try:
        manifest = read_manifest(embeddings)
        if manifest is None:
            return
        if manifest.fingerprint.to_dict() != dict(index.fingerprint):
            differences = manifest.fingerprint.differences(Fingerprint.from_dict(dict(index.fingerprint)))
            yield f"{embeddings.uri} now holds other embeddings than were indexed ({differences})"
            return
        n_missing, n_found = _compared(embeddings, manifest, ids_N)
    except (OSError, pa.ArrowInvalid, ReferenceSetError) as error:
        yield f"the embeddings cannot be compared: {' '.join(str(error).split())}"
        return
    if n_missing:
        yield f"{_cells(n_missing)} embedded in {embeddings.uri}, but not indexed"
    n_foreign = len(np.unique(ids_N)) - n_found
    if n_foreign:
        yield f"{_cells(n_foreign)} indexed, but not embedded in {embeddings.uri}"


def _compared(embeddings: Folder, manifest: Manifest, ids_N: Int64Array) -> tuple[int, int]:
    """How many cells with an embedding are not among sorted ids, and how many are; one part at a time."""
    n_missing = n_found = 0
    for name in manifest.parts:
        # A cell has an embedding where it has genes: `validate --embeddings` proves it, and vectors need not be read.
        table = read_part(embeddings.folder(PARTS), name, [JOINID, N_GENES])
        joinids = table[JOINID].to_numpy()[table[N_GENES].to_numpy() > 0]
        place = np.searchsorted(ids_N, joinids)
        known = place < len(ids_N)
        known[known] = ids_N[place[known]] == joinids[known]
        n_found += int(known.sum())
        n_missing += int((~known).sum())
    return n_missing, n_found
