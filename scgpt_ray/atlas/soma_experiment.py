"""Opening SOMA experiments, and the names of columns in them."""

import json
import os
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import tiledbsoma as soma

from scgpt_ray.atlas.malloc import keep_freed_memory
from scgpt_ray.object_store import ObjectStore
from scgpt_ray.schema import JOINID, OBS_ID, Int64Array

if TYPE_CHECKING:
    from anndata import AnnData

CONFIG = {
    "soma.init_buffer_bytes": str(4 * 2**20),
    "sm.mem.malloc_trim": "false",
    "sm.mem.total_budget": str(2**30),
    "sm.compute_concurrency_level": "1",
    "sm.io_concurrency_level": "1",
    "soma.compute_concurrency_level": "1",
    "sm.query.sparse_global_order.preprocess_tile_merge": "0",
}
"""TileDB settings of a reader.

Tiles are not merged ahead: TileDB 2.30 does it in a thread that frees the bounds of its last unit after it has said
that the merge is done. If the query ends in between, the thread writes to freed memory: a crash, rarely and under load.

A result has a buffer per column and table: buffers of 16 MiB take 70 MiB more memory, at the same speed.
"""

_FAR = {"soma.init_buffer_bytes": str(16 * 2**20), "sm.io_concurrency_level": "8"}
"""Other settings for object stores: TileDB asks for the counts of a result once more for each result, and for one file
after the other if it has one thread.
"""

_INDEX_NAME = "soma_dataframe_original_index_name"
"""Metadata key under which tiledbsoma.io stores, as JSON, the name of the column that was the AnnData's index."""


@lru_cache(maxsize=2)
def _context(process: int, store: ObjectStore, is_far: bool) -> Any:
    """One context per process and store: it owns threads, and must not cross a fork."""
    assert process == os.getpid()
    keep_freed_memory()
    return soma.SOMATileDBContext(tiledb_config={**CONFIG, **(_FAR if is_far else {}), **store.tiledb()})


@lru_cache(maxsize=2)
def open_experiment(process: int, uri: str, timestamp: int, store: ObjectStore) -> Any:
    """Opened once per process: opening costs several round trips, and a snapshot does not change."""
    # TileDB connects at the first request. The environment of a process that reads local files stays as it is.
    is_far = "://" in uri
    with store.environment() if is_far else nullcontext():
        return soma.Experiment.open(uri, context=_context(process, store, is_far), tiledb_timestamp=timestamp)


def members(uri: str, store: ObjectStore) -> list[str]:
    """Sorted names in a SOMA collection; none if it cannot be opened."""
    try:
        with store.environment(), soma.Collection.open(uri, context=_context(os.getpid(), store, True)) as collection:
            return sorted(collection)
    except soma.SOMAError:
        return []


def cell_name_column(obs: Any) -> str | None:
    """Column of obs with the names of the cells: the default of tiledbsoma.io, or the name that it recorded."""
    return _first_of((OBS_ID, _original_index(obs)), obs)


def gene_name_column(var: Any) -> str | None:
    """Column of var with the names of the genes: the same, or that of the Census."""
    return _first_of(("var_id", _original_index(var), "feature_id"), var)


def read_whole(experiment: Any, measurement: str, layer: str, joinids: Int64Array) -> "AnnData":
    """obs, var and a layer of a measurement, as X, of the cells with sorted joinids."""
    names = cell_name_column(experiment.obs), gene_name_column(experiment.ms[measurement].var)
    asked = soma.AxisQuery(coords=(pa.array(joinids),))
    with experiment.axis_query(measurement, obs_query=asked) as query:
        found: AnnData = query.to_anndata(layer, obs_id_name=names[0] or JOINID, var_id_name=names[1] or JOINID)
        return found


def _original_index(frame: Any) -> str | None:
    name: str | None = json.loads(frame.metadata.get(_INDEX_NAME, "null"))
    return name


def _first_of(names: tuple[str | None, ...], frame: Any) -> str | None:
    columns = frame.keys()
    return next((name for name in names if name in columns), None)
