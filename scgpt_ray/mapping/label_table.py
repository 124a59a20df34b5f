"""The reference's label columns as numbers, for the neighbours of queries.

Shapes: Q queries, K neighbours, L rows of the label table.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.schema import JOINID, Int64Array, known_texts

Codes: TypeAlias = npt.NDArray[np.int32]
"""Labels or groups as numbers; -1 for none."""

NO_CODE = -1
"""Code of a neighbour without a label, and of a query without votes."""
NO_NEIGHBOR = -1
"""The id that a search gives where there are fewer than K neighbours."""


@dataclass(frozen=True, eq=False)
class NeighborLabels:
    """A label column of the neighbours."""

    names: tuple[str, ...]
    """Distinct labels as text, sorted."""
    codes_QK: Codes
    """Place in `names`, int32 [Q, K]; -1 where there is no neighbour or it has no label."""


def neighbor_labels(rows_QK: Int64Array, labels: pa.Table, column: str) -> NeighborLabels:
    """Look up a label column.

    Args:
        rows_QK: As `neighbor_rows` gives them.
        labels: soma_joinid and label columns. Values that are not strings are named by their text.
        column: Its name.

    Raises:
        ReferenceSetError: If the column is absent.
    """
    names, codes_L = encoded(label_texts(labels, column))
    # A row of -1 picks the entry behind the last label.
    return NeighborLabels(tuple(names), np.append(codes_L, np.int32(NO_CODE))[rows_QK])


def neighbor_rows(neighbor_ids_QK: Int64Array, labels: pa.Table) -> Int64Array:
    """Row of each neighbour in the label table.

    Args:
        neighbor_ids_QK: int64 [Q, K], -1 where there is no neighbour.
        labels: With soma_joinid, in any order.

    Returns:
        int64 [Q, K]; -1 where there is no neighbour.

    Raises:
        ReferenceSetError: If a neighbour is missing, or any cell twice in the table.
    """
    joinid_L = labels[JOINID].to_numpy()
    order_L = np.argsort(joinid_L, kind="stable")
    sorted_L = joinid_L[order_L]
    if len(sorted_L) > 1 and (sorted_L[1:] == sorted_L[:-1]).any():
        raise broken("a cell has two rows in the label table")
    exists_QK = neighbor_ids_QK != NO_NEIGHBOR
    ids = neighbor_ids_QK[exists_QK]
    place = np.searchsorted(sorted_L, ids)
    known = place < len(sorted_L)
    known[known] = sorted_L[place[known]] == ids[known]
    if not known.all():
        raise broken(f"neighbour {ids[~known][0]} has no row in the label table")
    rows_QK = np.full(neighbor_ids_QK.shape, NO_NEIGHBOR, np.int64)
    rows_QK[exists_QK] = order_L[place]
    return rows_QK


def encoded(texts: pa.ChunkedArray) -> tuple[list[str], Codes]:
    """Sorted distinct texts, and per value its place among them; -1 for null."""
    names = pc.unique(texts).drop_null().sort()
    codes = pc.index_in(texts, value_set=names).fill_null(NO_CODE)
    return names.to_pylist(), np.asarray(codes.to_numpy(), np.int32)


def label_texts(labels: pa.Table, column: str) -> pa.ChunkedArray:
    """A label column as text, null where it is not known.

    Raises:
        ReferenceSetError: If it is absent.
    """
    if column not in labels.column_names:
        kept = ", ".join(name for name in labels.column_names if name != JOINID)
        raise ReferenceSetError(
            f"the index keeps no label column {column!r}",
            expected=f"one of: {kept}",
            remedy="name one of these, or build the index with --label-columns",
        )
    return known_texts(labels[column])


def broken(found: str) -> ReferenceSetError:
    """The error of an index whose labels do not fit its cells."""
    return ReferenceSetError(
        found,
        expected="every indexed cell once in the labels",
        remedy="build the index again; see scgpt-ray validate",
    )
