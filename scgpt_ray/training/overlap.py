"""Cells that are in several atlases, or twice in one: none of them is trained on and validated on.

Two cells are the same if they have the same tokens, or the same observation id. Ids that are plain numbers are row
numbers and identify nothing; other ids may agree by chance, which costs a few training cells.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.parts.token_file import TokenPart, read_tokens, tally
from scgpt_ray.schema import CONTENT, OBS_ID
from scgpt_ray.storage import Folder
from scgpt_ray.training.dataset import AtlasTokens

_READERS = 16
"""Files read at a time, since each is a round trip to an object store."""

_File = tuple[Folder, TokenPart]
Result = TypeVar("Result")


def without_overlap(
    atlases: tuple[AtlasTokens, ...], label_column: str | None, domain_column: str | None
) -> tuple[AtlasTokens, ...]:
    """Leave out the training cells that are also validation cells.

    Args:
        atlases: Token files.
        label_column: Column of labels, or None.
        domain_column: Column of domains, or None.

    Returns:
        The atlases with these cells left out, and with the counts of the other training cells.
    """
    files = [(atlas.folder, part) for atlas in atlases for part in atlas.parts]
    evaluated = list(_each(files, lambda folder, part: _identities(folder, part, validation=True)))
    contents = np.unique(np.concatenate([content for content, _ in evaluated] or [np.zeros(0, np.uint64)]))
    ids = pa.chunked_array([chunk for _, found in evaluated for chunk in found.chunks], pa.string()).unique()

    def shared_rows(folder: Folder, part: TokenPart) -> npt.NDArray[np.int64]:
        content_N, id_N = _identities(folder, part, validation=False)
        is_shared = np.isin(content_N, contents) | pc.is_in(id_N, value_set=ids, skip_nulls=True).to_numpy()
        return np.flatnonzero(is_shared)

    def without(folder: Folder, part: TokenPart, rows: npt.NDArray[np.int64]) -> TokenPart:
        columns = [name for name in (label_column, domain_column) if name is not None]
        cells = read_tokens(folder, part, validation=False, columns=columns or [CONTENT])
        cells = cells.take(np.delete(np.arange(cells.num_rows), rows))
        return replace(
            part, n_train=cells.num_rows, labels=tally(cells, label_column), domains=tally(cells, domain_column)
        )

    rows_of_files = iter(list(_each(files, shared_rows)))
    found = []
    for atlas in atlases:
        rows = {part.partition: next(rows_of_files) for part in atlas.parts}
        left_out = {partition: tuple(shared.tolist()) for partition, shared in rows.items() if len(shared)}
        parts = tuple(
            without(atlas.folder, part, rows[part.partition]) if part.partition in left_out else part
            for part in atlas.parts
        )
        found.append(replace(atlas, parts=parts, left_out=left_out))
    return tuple(found)


def _each(files: Iterable[_File], read: Callable[[Folder, TokenPart], Result]) -> Iterable[Result]:
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(lambda file: read(*file), files)


def _identities(folder: Folder, part: TokenPart, *, validation: bool) -> tuple[npt.NDArray[np.uint64], pa.ChunkedArray]:
    """Digests, and observation ids with null for row numbers."""
    cells = read_tokens(folder, part, validation=validation, columns=[CONTENT, OBS_ID])
    if OBS_ID not in cells.column_names:
        ids = pa.chunked_array([pa.nulls(cells.num_rows, pa.string())])
    else:
        ids = cells[OBS_ID].cast(pa.string())
    is_number = pc.match_substring_regex(ids, r"^\d*$")
    return cells[CONTENT].to_numpy(), pc.if_else(is_number, pa.scalar(None, pa.string()), ids)
