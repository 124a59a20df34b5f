"""Embeddings as a SOMA array in the format of embeddings of the CELLxGENE Census.

The format is that which `cellxgene_census.experimental.get_embedding` reads (chanzuckerberg/cellxgene-census at
2d356b0, api/python/.../experimental/_embedding.py and tools/census_contrib: embedding_metadata.md, save.py,
validate.py):

* a SparseNDArray of float32 with the shape [rows of obs, d]: soma_dim_0 is soma_joinid, soma_dim_1 the feature;
* every feature of an embedded cell is stored, zeros too; `get_embedding` returns NaN for cells that are not stored;
* the metadata key CxG_embedding_info has a JSON object, of which the reader needs census_version, experiment_name and
  measurement_name; the others are for people;
* published embeddings are rounded to the precision of bfloat16.

Other than upstream's, the array refuses duplicates: a cell that is written twice is stored once.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tiledbsoma as soma

from scgpt_ray.atlas.soma import SomaSource
from scgpt_ray.atlas.soma_experiment import open_experiment
from scgpt_ray.schema import EMBEDDING, JOINID, Float32Matrix, matrix

INFO = "CxG_embedding_info"

_ZSTD = {"_type": "ZstdFilter", "level": 3}
_SORTED = {"tiledb": {"write": {"sort_coords": False}}}  # rows are in order: five times as fast
_CONSOLIDATED = {"tiledb": {"write": {"sort_coords": False, "consolidate_and_vacuum": True}}}
"""Also writes what says which fragments there are into one file, so that a reader does not open one per fragment."""

_VALUES = pa.schema([("soma_dim_0", pa.int64()), ("soma_dim_1", pa.int64()), ("soma_data", pa.float32())])
_FRAGMENT_VALUES = 2**24
"""Values of a fragment, at least: 32,768 cells of width 512, which take 335 MB while they are written."""


def write_embedding_soma(
    place: Path, tables: Iterable[pa.Table], shape: tuple[int, int], info: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write an array of embeddings.

    Args:
        place: Folder to create or fill.
        tables: soma_joinid and embedding, in order of soma_joinid.
        shape: Rows of obs in the atlas (the largest soma_joinid + 1), and width d of the embeddings.
        info: Metadata, as JSON values.
        half: Round to the precision of bfloat16, half as large after compression.

    Raises:
        OSError: If the array cannot be written.
    """
    with soma.SparseNDArray.create(
        place.as_posix(), type=pa.float32(), shape=shape, platform_config=_layout(shape[1])
    ) as array:
        array.metadata[INFO] = json.dumps(info)
        for cells in _fragments(tables, half):
            array.write(cells, platform_config=_SORTED)
        array.write(_VALUES.empty_table(), platform_config=_CONSOLIDATED)


def _fragments(tables: Iterable[pa.Table], half: bool) -> Iterator[pa.Table]:
    """Coordinates and values of many cells at a time."""
    waiting: list[pa.Table] = []
    for table in tables:
        cells = table.filter(table[EMBEDDING].is_valid())
        if cells.num_rows:
            vectors_ND = np.asarray(matrix(cells[EMBEDDING]), np.float32)
            row_E = np.repeat(cells[JOINID].to_numpy(), vectors_ND.shape[1])
            column_E = np.tile(np.arange(vectors_ND.shape[1]), len(vectors_ND))
            value_E = (as_bfloat16(vectors_ND) if half else vectors_ND).ravel()
            waiting.append(pa.table([row_E, column_E, value_E], schema=_VALUES))
        if sum(map(len, waiting)) >= _FRAGMENT_VALUES:
            yield pa.concat_tables(waiting)
            waiting.clear()
    if waiting:
        yield pa.concat_tables(waiting)


def _layout(width: int) -> dict[str, Any]:
    """Tiles and filters of the array: one tile of columns, so that rows are in TileDB's order."""
    return {
        "tiledb": {
            "create": {
                "capacity": 2**17,
                "dims": {
                    "soma_dim_0": {"tile": 2048, "filters": [_ZSTD]},
                    "soma_dim_1": {"tile": width, "filters": [_ZSTD]},
                },
                "attrs": {"soma_data": {"filters": ["ByteShuffleFilter", _ZSTD]}},
                "cell_order": "row-major",
                "tile_order": "row-major",
                "allows_duplicates": False,
            }
        }
    }


def as_bfloat16(values: Float32Matrix) -> Float32Matrix:
    """Round finite float32 to the nearest bfloat16, ties to even: the upper 16 bits of a float32."""
    bits: npt.NDArray[np.uint32] = values.view(np.uint32)
    is_odd = (bits >> 16) & 1
    return ((bits + 0x7FFF + is_odd) & 0xFFFF0000).view(np.float32)


def count_obs_rows(source: SomaSource) -> int:
    """Rows of obs of an experiment, selected or not: the largest soma_joinid + 1.

    Raises:
        OSError: If it cannot be read.
    """
    experiment = open_experiment(os.getpid(), source.uri, source.timestamp, source.store)
    return int(experiment.obs.non_empty_domain()[0][1]) + 1
