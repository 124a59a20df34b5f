"""Audit of an index folder: every file is read back and compared with the description and the embeddings."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.identity import differences
from scgpt_ray.index.description import TEMPLATE, require_index
from scgpt_ray.index.shard import HALF, open_array, open_faiss
from scgpt_ray.parts.parts import PARTS, read_part
from scgpt_ray.records import IndexDescription, Manifest, ShardDescription
from scgpt_ray.schema import JOINID, N_GENES, Int64Array
from scgpt_ray.storage import Folder

_ROWS = 65_536


def audit_index(folder: Folder) -> list[str]:
    """Check an output folder of `index`.

    Template, shards and labels can be read and have the same width; a shard and its labels hold the same cells; no cell
    is in two shards; the embeddings, if they still exist, are those that were indexed. Memory: the largest shard and 24
    bytes per cell.

    Returns:
        One line per problem; empty without problems.

    Raises:
        ReferenceSetError: If the folder holds no finished index.
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
    sources = [Folder.at(place) for place in (index.embeddings, *index.appended)]
    problems += _audit_source(sources, index, ids_N)
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
    """Ids of a shard, int64 [n] (empty if they cannot be read), and its problems."""
    labelled, problems = _read_labels(folder, shard, index)
    opened = _opened(folder, shard.name)
    if isinstance(opened, str):
        problems.insert(0, opened)
    else:
        if opened.d != index.d:
            problems.append(f"{shard.name} is of width {opened.d}, the description says {index.d}")
        if opened.ntotal != shard.n_cells:
            problems.append(f"{shard.name} holds {opened.ntotal} cells, the description says {shard.n_cells}")
    with TemporaryDirectory() as cache:
        ids = _array(folder, shard.ids, np.int64, (shard.n_cells,), Path(cache))
        if shard.vectors is not None:
            halved = _array(folder, shard.vectors, HALF, (shard.n_cells, index.d), Path(cache))
            problems += [halved] if isinstance(halved, str) else _audit_vectors(shard.vectors, halved)
        if isinstance(ids, str):
            return np.empty(0, np.int64), [*problems, ids]
        ids = np.array(ids)
    if (np.diff(ids) <= 0).any():
        problems.append(f"{shard.ids} is not in ascending order")
    if labelled is not None and not np.array_equal(ids, labelled):
        problems.append(f"{shard.ids} and {shard.labels} hold different cells")
    return ids, problems


def _audit_vectors(name: str, halved_ND: npt.NDArray[np.float16]) -> list[str]:
    """Problems of the vectors, which are read one block at a time."""
    blocks = (halved_ND[start : start + _ROWS] for start in range(0, len(halved_ND), _ROWS))
    return [] if all(np.isfinite(block).all() for block in blocks) else [f"{name} holds values that are not finite"]


def _array(
    folder: Folder, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], cache: Path
) -> npt.NDArray[Any] | str:
    """A memory-mapped .npy file, or its problem."""
    if not folder.has(name):
        return f"{name} is missing"
    try:
        return open_array(folder.fetch(name, cache), dtype, shape)
    except ReferenceSetError as error:
        return f"{name}: {error.found}"


def _opened(folder: Folder, name: str) -> faiss.Index | str:
    """A faiss index, or the problem of its file."""
    if not folder.has(name):
        return f"{name} is missing"
    try:
        return open_faiss(folder.path / name if folder.is_local else folder.read(name))
    except ReferenceSetError as error:
        return f"{name}: {error.found}"


def _read_labels(
    folder: Folder, shard: ShardDescription, index: IndexDescription
) -> tuple[Int64Array | None, list[str]]:
    """Joinids of a label table, int64 [n] (None if it has none), and its problems."""
    if not folder.has(shard.labels):
        return None, [f"{shard.labels} is missing"]
    try:
        with folder.open(shard.labels) as stream:
            table = pq.read_table(stream)  # all columns: damage shows only when a column is read
    except (OSError, pa.ArrowInvalid) as error:
        return None, [f"{shard.labels} cannot be read: {' '.join(str(error).split())}"]
    lacking = [name for name in (JOINID, *index.label_columns) if name not in table.column_names]
    problems = [f"{shard.labels} has no column {', '.join(lacking)}"] if lacking else []
    return (None if JOINID in lacking else table[JOINID].to_numpy()), problems


def _audit_source(sources: list[Folder], index: IndexDescription, ids_N: Int64Array) -> Iterator[str]:
    """Compare with the embeddings that were indexed; yields nothing if they no longer exist.

    Args:
        sources: Their folders; all must have the model of the index's fingerprint.
        index: The description.
        ids_N: int64 [N], sorted ids of all shards.
    """
    first = index.fingerprint
    embedded: list[Int64Array] = []
    for source in sources:
        try:
            manifest = Manifest.read(source)
            if manifest is None:
                return
            mine = manifest.fingerprint
            if mine.model != first.model or (mine != first and not index.appended):
                changed = differences(asdict(mine), asdict(first))
                yield f"{source.uri} now holds other embeddings than were indexed ({changed})"
                return
            embedded.append(_embedded(source, manifest))
        except (OSError, pa.ArrowInvalid, ReferenceSetError) as error:
            yield f"the embeddings cannot be compared: {' '.join(str(error).split())}"
            return
        n_missing = int((~np.isin(embedded[-1], ids_N)).sum())
        if n_missing:
            yield f"{_cells(n_missing)} embedded in {source.uri}, but not indexed"
    n_foreign = len(np.setdiff1d(ids_N, np.concatenate(embedded)))
    if n_foreign:
        yield f"{_cells(n_foreign)} indexed, but not embedded in {' or '.join(source.uri for source in sources)}"


def _embedded(source: Folder, manifest: Manifest) -> Int64Array:
    """Joinids of the cells that have an embedding; reads one part at a time."""
    ids = [np.empty(0, np.int64)]
    for name in manifest.parts:
        # A cell with genes has an embedding (`validate --embeddings` checks that), so vectors need not be read.
        table = read_part(source.folder(PARTS), name, [JOINID, N_GENES])
        ids.append(table[JOINID].to_numpy()[table[N_GENES].to_numpy() > 0])
    return np.concatenate(ids)
