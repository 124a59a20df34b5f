"""Audit of an index folder: every file is read back and compared with the description and the embeddings."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index.audit_content import audit_content
from scgpt_ray.index.card import CARD
from scgpt_ray.index.description import CENTRE, TEMPLATE, TEMPLATE_MARKER, require_index
from scgpt_ray.index.removal import removed_ids
from scgpt_ray.index.shard import HALF, open_array, open_faiss
from scgpt_ray.parts.audit import Problem
from scgpt_ray.records import IndexDescription, ShardDescription
from scgpt_ray.schema import JOINID, Int64Array
from scgpt_ray.storage import Folder
from scgpt_ray.temporary_folder import temporary_folder

_ROWS = 65_536
_T = TypeVar("_T")


def audit_index(folder: Folder) -> list[Problem]:
    """Check an output folder of `index`.

    Template, shards and labels can be read and have the same width; a shard and its labels hold the same cells; no cell
    is in two shards. If the embeddings still exist: they are those that were indexed; ids, labels and vectors are
    theirs, and the recall is what the description says (`audit_content`). Memory: a shard, a part and 24 bytes per
    cell.

    Returns:
        Problems; empty if there are none.

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
        line = f"has {len(doubled)} cells in more than one shard, the first is soma_joinid {doubled[0]}"
        problems.append(Problem(IndexDescription.file, line, mends=False))
    return problems or list(audit_content(folder, index))


def audit_card(folder: Folder) -> list[Problem]:
    """Check the card of a finished index against its description; a problem, or none."""
    index = require_index(folder)
    if not folder.has(CARD):
        return [Problem(CARD, "is missing")]
    text = folder.read(CARD).decode(errors="replace")
    recall = f"{index.recall_at_10:.4f}, measured on {index.recall_queries} cells"
    if all(figure in text for figure in (f"{index.n_cells:,} cells", recall, index.license)):
        return []
    return [Problem(CARD, f"has other figures than {IndexDescription.file}")]


def _opened(problems: list[Problem], name: str, read: Callable[[], _T]) -> _T | None:
    """What a file holds; None, and a problem, if it cannot be read."""
    try:
        return read()
    except FileNotFoundError:
        problems.append(Problem(name, "is missing"))
    except ReferenceSetError as error:
        problems.append(Problem(name, f"cannot be read: {error.found.partition('cannot be read: ')[2] or error.found}"))
    except (OSError, pa.ArrowException, ValueError) as error:
        problems.append(Problem(name, f"cannot be read: {' '.join(str(error).split())}"))
    return None


def _open_faiss(folder: Folder, name: str) -> faiss.Index:
    if not folder.has(name):
        raise FileNotFoundError(name)
    return open_faiss(folder.path / name if folder.is_local else folder.read(name))


def _audit_template(folder: Folder, index: IndexDescription) -> list[Problem]:
    problems: list[Problem] = []
    template = _opened(problems, TEMPLATE, lambda: _open_faiss(folder, TEMPLATE))
    centre = _opened(problems, CENTRE, lambda: folder.read(CENTRE))
    marker = _opened(problems, TEMPLATE_MARKER, lambda: json.loads(folder.read(TEMPLATE_MARKER)))
    if template is None:
        return problems
    if template.d != index.d:
        problems.append(Problem(TEMPLATE, f"is of width {template.d}, the description says {index.d}"))
    if not template.is_trained or template.ntotal:
        problems.append(Problem(TEMPLATE, "is not a trained, empty index"))
    elif centre is not None and marker is not None:
        content = hashlib.sha256(folder.read(TEMPLATE) + centre).hexdigest()
        if content != (marker.get("content") if isinstance(marker, dict) else None):
            problems.append(Problem(TEMPLATE_MARKER, f"has the digest of another {TEMPLATE} or {CENTRE}"))
    return problems


def _audit_shard(folder: Folder, shard: ShardDescription, index: IndexDescription) -> tuple[Int64Array, list[Problem]]:
    """Ids of a shard that are part of the index, int64 [n] (empty if they cannot be read), and its problems."""
    problems: list[Problem] = []
    opened = _opened(problems, shard.name, lambda: _open_faiss(folder, shard.name))
    if opened is not None and opened.d != index.d:
        problems.append(Problem(shard.name, f"is of width {opened.d}, the description says {index.d}"))
    if opened is not None and opened.ntotal != shard.n_cells:
        problems.append(Problem(shard.name, f"holds {opened.ntotal} cells, the description says {shard.n_cells}"))
    with temporary_folder() as cache:
        shape = (shard.n_cells,)
        ids = _opened(problems, shard.ids, lambda: np.array(_array(folder, shard.ids, np.int64, shape, cache)))
        if shard.vectors is not None:
            problems += _audit_vectors(folder, shard.vectors, (*shape, index.d), cache)
    if ids is not None and (np.diff(ids) <= 0).any():
        problems.append(Problem(shard.ids, "is not in ascending order"))
    # All columns: damage shows only when a column is read.
    labels = _opened(problems, shard.labels, lambda: pq.read_table(pa.BufferReader(folder.read(shard.labels))))
    if labels is not None:
        problems += _audit_labels(labels, ids, shard, index)
    return (np.empty(0, np.int64) if ids is None else _left(folder, shard, ids, problems)), problems


def _left(folder: Folder, shard: ShardDescription, ids_N: Int64Array, problems: list[Problem]) -> Int64Array:
    """Ids of a shard that are part of the index; none, and a problem, if it is not known which."""
    if shard.removed is None:
        return ids_N
    removed = _opened(problems, shard.removed, lambda: removed_ids(folder, shard))
    if removed is not None and len(removed) == shard.n_removed and np.isin(removed, ids_N).all():
        return np.setdiff1d(ids_N, removed)
    if removed is not None:
        problems.append(Problem(shard.removed, f"lists other cells than {shard.n_removed} of {shard.ids}"))
    return np.empty(0, np.int64)


def _array(
    folder: Folder, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], cache: Path
) -> npt.NDArray[np.generic]:
    if not folder.has(name):
        raise FileNotFoundError(name)
    return open_array(folder.fetch(name, cache), dtype, shape)


def _audit_vectors(folder: Folder, name: str, shape: tuple[int, int], cache: Path) -> list[Problem]:
    """Problems of the vectors, which are read one block at a time."""
    problems: list[Problem] = []
    halved_ND = _opened(problems, name, lambda: _array(folder, name, HALF, shape, cache))
    if halved_ND is not None:
        blocks = (halved_ND[start : start + _ROWS] for start in range(0, len(halved_ND), _ROWS))
        if not all(np.isfinite(block).all() for block in blocks):
            problems.append(Problem(name, "holds values that are not finite"))
    return problems


def _audit_labels(
    labels: pa.Table, ids: Int64Array | None, shard: ShardDescription, index: IndexDescription
) -> Iterator[Problem]:
    lacking = [name for name in (JOINID, *index.label_columns) if name not in labels.column_names]
    if lacking:
        yield Problem(shard.labels, f"has no column {', '.join(lacking)}")
    elif ids is not None and not np.array_equal(ids, labels[JOINID].to_numpy()):
        yield Problem(shard.labels, f"holds other cells than {shard.ids}")
