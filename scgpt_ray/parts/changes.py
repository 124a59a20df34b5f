"""How two sets of embeddings differ, cell by cell, per data set."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from scgpt_ray.parts.parts import PARTS, iterate_parts, part_columns
from scgpt_ray.records import ChangeCounts, Manifest
from scgpt_ray.schema import CONTENT, DATASET_ID, JOINID, OBS_ID, OBSERVATION, Int64Array
from scgpt_ray.storage import Folder

ALL = "all cells"
"""In place of a data set where the embeddings do not say which."""


_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""Golden ratio; spreads the bits of a hash before another is added."""


def identity_columns(one: set[str], other: set[str]) -> tuple[str, ...]:
    """Columns that identify a cell in two sets of embeddings, given the columns of their parts.

    `dataset_id` and `observation_joinid` where both carry them, which hold between releases of the Census; else the
    name of the observation; else soma_joinid.
    """
    for columns in ((DATASET_ID, OBSERVATION), (OBS_ID,)):
        if one & other >= set(columns):
            return columns
    return (JOINID,)


def changes(
    earlier: Folder, before: Manifest, later: Folder, after: Manifest
) -> tuple[tuple[str, ...], dict[str, ChangeCounts]]:
    """Compare two sets of embeddings by the digests of their cells' contents.

    Reads two columns of all parts; 24 bytes per cell are in memory.

    Args:
        earlier: Folder of the earlier embeddings.
        before: Their manifest.
        later: Folder of the later ones.
        after: Their manifest.

    Returns:
        The columns that identify a cell, and the counts per data set, sorted by name.
    """
    columns = identity_columns(part_columns(earlier, before), part_columns(later, after))
    old, new = _cells(earlier, before, columns), _cells(later, after, columns)
    both = new.merge(old, on=["key", "occurrence"], how="outer", suffixes=("", "_old"), indicator="side")
    dataset = both["dataset"].astype(object).fillna(both["dataset_old"].astype(object))
    same = both["content"] == both["content_old"]
    counts = {
        "added": both["side"] == "left_only",
        "carried": (both["side"] == "both") & same,
        "changed": (both["side"] == "both") & ~same,
        "removed": both["side"] == "right_only",
    }
    table = pd.DataFrame(counts).groupby(dataset).sum()
    return columns, {str(row[0]): ChangeCounts(*map(int, row[1:])) for row in table.itertuples()}


def unchanged(
    earlier: Folder, earlier_parts: list[str], later: Folder, later_parts: list[str], columns: list[str]
) -> Int64Array:
    """The soma_joinids, sorted, whose content and values of some columns are the same in two sets of embeddings.

    16 bytes per cell of both are in memory.
    """
    (old_N, old_key_N), (new_N, new_key_N) = (
        _keys(earlier.folder(PARTS), earlier_parts, columns),
        _keys(later.folder(PARTS), later_parts, columns),
    )
    both_N, old_rows, new_rows = np.intersect1d(old_N, new_N, assume_unique=True, return_indices=True)
    same_N: Int64Array = both_N[old_key_N[old_rows] == new_key_N[new_rows]]
    return same_N


def _keys(parts: Folder, names: list[str], columns: list[str]) -> tuple[Int64Array, npt.NDArray[np.uint64]]:
    """Joinids, and hashes of content and columns."""
    ids, keys = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for table in iterate_parts(parts, names, list(dict.fromkeys([JOINID, CONTENT, *columns]))):
        key_N = _hashed(table[CONTENT])
        for name in columns:
            key_N = key_N * _SPREAD + _hashed(table[name].cast(pa.string()))
        ids.append(table[JOINID].to_numpy())
        keys.append(key_N)
    return np.concatenate(ids), np.concatenate(keys)


def _cells(folder: Folder, manifest: Manifest, columns: tuple[str, ...]) -> pd.DataFrame:
    """Identity, content and data set of every cell."""
    by_dataset = DATASET_ID in manifest.obs_columns
    wanted = list(dict.fromkeys([*columns, CONTENT, *([DATASET_ID] if by_dataset else [])]))
    frames = []
    for table in iterate_parts(folder.folder(PARTS), list(manifest.parts), wanted):
        keys = np.zeros(len(table), np.uint64)
        for name in columns:
            keys = keys * _SPREAD + _hashed(table[name])
        dataset = table[DATASET_ID].cast(pa.string()).to_pandas() if by_dataset else pd.Series([ALL] * len(table))
        frames.append(pd.DataFrame({"key": keys, "content": table[CONTENT].to_numpy(), "dataset": dataset}))
    cells = pd.concat(frames, ignore_index=True).astype({"dataset": "category"})
    # Where an identity occurs more than once, its first cell is compared with the first, and so on.
    return cells.assign(occurrence=cells.groupby("key").cumcount())


def _hashed(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """64-bit hashes of values."""
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy(), np.uint64)
    hashed: npt.NDArray[np.uint64] = pd.util.hash_array(column.cast(pa.string()).to_numpy(zero_copy_only=False))
    return hashed
