"""Embeddings that were made elsewhere, joined to the cells they are compared on."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.parts.vector_file import VectorFile
from scgpt_ray.schema import JOINID, N_GENES, OBS_ID, Float32Matrix, Int64Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GivenSet:
    """Vectors of a Parquet file, by cell.

    Attributes:
        name: Short, and of no other set that it is compared with.
        file: Where they are.
        row_N: The file's row of each cell, int64 [n]; -1 for cells without an embedding, which need none.
    """

    name: str
    file: VectorFile
    row_N: Int64Array

    @classmethod
    def joined(cls, name: str, place: str, cells: pa.Table) -> "GivenSet":
        """Find the cells in a file, by soma_joinid where it has that, else by obs_id.

        The file must have all cells that have an embedding in the first set. Rows of other cells are welcome, since
        the first set may be a part of what was embedded elsewhere: they are left out, which is logged.

        Args:
            name: Of the set.
            place: The file.
            cells: soma_joinid and n_genes of the first set, and obs_id where there is one.

        Raises:
            ReferenceSetError: If the file cannot be used, lacks a cell, or means other cells.
        """
        file = VectorFile.at(place)
        keys = file.keys()
        needed = np.flatnonzero(cells[N_GENES].to_numpy() > 0)
        wanted = cells.select([column for column in (JOINID, OBS_ID) if column in cells.column_names]).take(needed)
        found = _rows_of(file, keys, wanted)
        row_N = np.full(len(cells), -1, np.int64)
        row_N[needed] = found.to_numpy()
        others = len(keys) - len(needed)
        if others:
            logger.info("%s: %d of %d rows are of other cells and left out", file.place, others, len(keys))
        return cls(name, file, row_N)

    def vectors(self, rows: Int64Array) -> Float32Matrix:
        """Embeddings of some cells; those of all joined cells are checked.

        Args:
            rows: int64 [n], ascending places among all cells, none of them without an embedding.

        Returns:
            float32 [n, d].

        Raises:
            ReferenceSetError: If the vector of a joined cell is null, of another length than the first, or not finite.
        """
        joined = np.flatnonzero(self.row_N >= 0)
        in_file = joined[np.argsort(self.row_N[joined])]
        place_N = np.full(len(self.row_N), -1, np.int64)
        place_N[rows] = np.arange(len(rows))
        found, places, start = [], [], 0
        for block_MD in self.file.blocks(self.row_N[in_file]):
            place_M = place_N[in_file[start : start + len(block_MD)]]
            found.append(block_MD[place_M >= 0])
            places.append(place_M[place_M >= 0])
            start += len(block_MD)
        return np.concatenate(found)[np.argsort(np.concatenate(places))]


def _rows_of(file: VectorFile, keys: pa.Table, wanted: pa.Table) -> pa.Array:
    """The file's row of each wanted cell."""
    key = file.ids[0]
    if key not in wanted.column_names:
        raise _refused(file, f"names cells by {key}, which the first set does not have", f"a column {JOINID}")
    cells = wanted[key].cast(keys[key].type).combine_chunks()
    if len(cells.unique()) < len(cells):
        raise _refused(file, f"names cells by {key}, which is not unique in the first set", f"a column {JOINID}")
    found = pc.index_in(cells, value_set=keys[key].combine_chunks())
    missing = cells.filter(found.is_null())
    if len(missing):
        raise _refused(
            file,
            f"lacks {len(missing):,} of the {len(cells):,} embedded cells of the first set, such as {key} {missing[0]}",
            "a vector for each of them",
        )
    if file.ids == (JOINID, OBS_ID) and OBS_ID in wanted.column_names:
        _require_same_names(file, keys.take(found), wanted)
    return found


def _require_same_names(file: VectorFile, theirs: pa.Table, wanted: pa.Table) -> None:
    """Cells found by soma_joinid have the same names where both sides have names."""
    names = theirs[OBS_ID]
    same = pc.fill_null(pc.equal(names, wanted[OBS_ID].cast(names.type)), fill_value=False)
    place = pc.index(same, value=False).as_py()
    if place >= 0:
        raise _refused(
            file,
            f"has {JOINID} {wanted[JOINID][place]} as {names[place]}, and the first set as {wanted[OBS_ID][place]}",
            f"the same cell under a {JOINID}, or {OBS_ID} alone",
        )


def _refused(file: VectorFile, problem: str, expected: str) -> ReferenceSetError:
    return ReferenceSetError(
        f"{file.place} {problem}",
        expected=expected,
        remedy="write the file anew for these cells, or embed only those that it has",
    )
