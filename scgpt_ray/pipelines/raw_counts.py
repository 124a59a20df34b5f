"""Raw counts of evaluated cells, read again from the atlas that was embedded."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from scgpt_ray.atlas.genes import VAR_JOINID
from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.source import Source, locate
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError
from scgpt_ray.identity import differences
from scgpt_ray.records import Plan
from scgpt_ray.schema import COUNT, GENE, JOINID, OBS_ID, Int64Array, ragged

logger = logging.getLogger(__name__)

_CELLS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of cells.

    Attributes:
        uri: Path or URI of the atlas.
        counts_NG: float32 [n, genes], CSR.
        genes_G: Name of each gene, str [genes].
    """

    uri: str
    counts_NG: sparse.csr_matrix
    genes_G: npt.NDArray[np.object_]


def embedded_atlas(plan: Plan | None, option: str | None = "--counts") -> Source | str:
    """The atlas that was embedded, or the reason why it is not read again.

    A remote atlas is read only where --counts names it: reading the counts of cells spread over it can take hours.

    Args:
        plan: Plan of the embeddings.
        option: Option that names the atlas, for messages; None without one.
    """
    if plan is None:
        return "plan.json, which names the atlas, is missing"
    place = str(plan.settings["atlas"])
    if "://" in place or place.startswith("census:"):
        return f"{place} is remote" + (f", and is only read if {option} names it" if option else "")
    try:
        source = locate(place, _cell_settings(plan), plan.fingerprint.cells)
    except AtlasError as error:
        return error.found + (f"; name the atlas with {option}" if option else "")
    found, planned = source.identity(), plan.fingerprint.cells
    changed = differences(found, {key: planned.get(key) for key in found})
    if changed:
        return f"{place} is not as it was embedded ({changed})"
    return source


def named_atlas(place: str, plan: Plan | None, layer: str | None = None) -> Source:
    """The atlas that --counts names, with the selection of cells of the embeddings.

    Args:
        place: Path or URI.
        plan: Plan of the embeddings.
        layer: Where the counts are; None for the layer that was embedded.

    Raises:
        InputError: If it is absent, or lacks what is needed.
    """
    settings = _cell_settings(plan) if plan else CellSettings()
    if layer is not None:
        settings = settings.model_copy(update={"layer": layer})
    return locate(place, settings, plan.fingerprint.cells if plan else None)


def _cell_settings(plan: Plan) -> CellSettings:
    """Settings by which the embedded cells were selected and read, without carried obs columns."""
    asked = {name: plan.settings[name] for name in CellSettings.model_fields if name in plan.settings}
    return CellSettings.of(asked | {"obs_columns": (), "snapshot": None})


def read_counts(source: Source, joinids: Int64Array, names: list[str] | None) -> Counts:
    """Read the counts of some cells, a block of rows at a time.

    Args:
        source: Source of the cells.
        joinids: int64 [n], ascending.
        names: obs_id of each cell if the embeddings have it: must be the same in an atlas that has it.

    Raises:
        AtlasError: If the atlas lacks a cell, or has it under another obs_id.
    """
    var = source.var()
    columns = np.asarray(var[VAR_JOINID] if VAR_JOINID in var else range(len(var)), np.int64)
    own_place = np.arange(columns[-1] + 1, dtype=np.int32)
    cells = pa.concat_tables(list(counted_cells(source, joinids, own_place)))
    if names is not None and OBS_ID in cells.column_names and cells[OBS_ID].to_pylist() != names:
        raise _other_cells(source.uri)
    return Counts(source.uri, counts_matrix(cells, len(own_place))[:, columns], gene_names(var))


def counted_cells(source: Source, joinids: Int64Array, places: npt.NDArray[np.int32]) -> Iterator[pa.Table]:
    """Read some cells again as CELLS, in order of joinid, in blocks of at most 2,048.

    Args:
        source: Source of the cells.
        joinids: int64 [n], ascending, at least one.
        places: Value of `gene` for each var joinid, int32; -1 to omit a gene.

    Raises:
        AtlasError: If the atlas lacks a cell.
    """
    available = source.joinids()
    if not np.isin(joinids, available).all():
        raise _other_cells(source.uri)
    for partition in cut(available, _CELLS_AT_ONCE):
        first, last = np.searchsorted(joinids, (partition.first, partition.last + 1))
        if first < last:
            for block in source.read(partition, places):
                yield block.filter(pc.is_in(block[JOINID], value_set=pa.array(joinids[first:last])))


def counts_matrix(cells: pa.Table, n_places: int) -> sparse.csr_matrix:
    """Counts of CELLS by `gene`, float32 [n, n_places], CSR; counts of the same place are summed."""
    offsets, places = ragged(cells[GENE])
    values = ragged(cells[COUNT])[1].copy(), places.copy(), offsets  # Arrow's memory is read-only
    counts_NG = sparse.csr_matrix(values, shape=(len(cells), n_places))
    counts_NG.sum_duplicates()
    return counts_NG


def _other_cells(uri: str) -> AtlasError:
    return AtlasError(
        f"{uri} has other cells than the embeddings",
        expected="the atlas that was embedded, or a copy of it",
        remedy="name that atlas with --counts",
    )


def gene_names(var: pd.DataFrame) -> npt.NDArray[np.object_]:
    """Gene names for reports: the first of the usual columns that var has."""
    column = next((name for name in CellSettings().gene_columns if name in var), None)
    return np.asarray(var.index if column is None else var[column], object).astype(str).astype(object)
