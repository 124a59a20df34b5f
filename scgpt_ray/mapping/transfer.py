"""Label transfer: the labels of a query's neighbours become its own.

Shapes: Q queries, K neighbours, L rows of the label table.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from scgpt_ray.mapping.label_table import NO_NEIGHBOR, encoded, label_texts, neighbor_labels, neighbor_rows
from scgpt_ray.mapping.vote import ABSTAINS, Codes, vote
from scgpt_ray.schema import Float32Matrix, Int64Array

UNKNOWN = "Unknown"
"""The label of a query without a labelled neighbour."""


def transfer(
    neighbor_ids_QK: Int64Array, scores_QK: Float32Matrix, labels: pa.Table, columns: Sequence[str]
) -> pa.Table:
    """Elect a label per query and column.

    Args:
        neighbor_ids_QK: int64 [Q, K], -1 where there is no neighbour.
        scores_QK: float32 [Q, K].
        labels: soma_joinid and the label columns, each neighbour once; a null label does not vote.
        columns: Labels to transfer. Values that are not strings are named by their text.

    Returns:
        Q rows: `<column>`, string, `Unknown` where no neighbour has a label; `<column>_confidence`, float32.

    Raises:
        ReferenceSetError: If a column is absent, or a neighbour is missing or twice in the table.
    """
    rows_QK = neighbor_rows(neighbor_ids_QK, labels)
    transferred: dict[str, pa.Array] = {}
    for column in columns:
        neighbor = neighbor_labels(rows_QK, labels, column)
        names = [*neighbor.names, UNKNOWN]
        winner_Q, confidence_Q = vote(neighbor.codes_QK, scores_QK, len(neighbor.names))
        # The last name is the one that -1 picks.
        transferred[column] = pa.array(names, pa.string()).take(pa.array(winner_Q % len(names)))
        transferred[f"{column}_confidence"] = pa.array(confidence_Q, pa.float32())
    return pa.table(transferred)


def group_codes(
    neighbor_ids_QK: Int64Array, labels: pa.Table, column: str, query_values: pa.ChunkedArray
) -> tuple[Codes, Codes]:
    """Codes of a column known to query and reference, such as donor_id, as `exclude` takes them.

    Args:
        neighbor_ids_QK: int64 [Q, K], -1 where there is no neighbour.
        labels: soma_joinid and the column, for the reference.
        column: Its name.
        query_values: The queries' own values, [Q].

    Returns:
        int32 [Q, K] of the neighbours and int32 [Q] of the queries, equal where the texts are; -1 where null.

    Raises:
        ReferenceSetError: As `transfer`.
    """
    reference, queries = label_texts(labels, column), query_values.cast(pa.string())
    _, code_LQ = encoded(pa.chunked_array([*reference.chunks, *queries.chunks], pa.string()))
    code_L, code_Q = np.split(code_LQ, [len(reference)])
    # A row of -1 picks the entry behind the last cell.
    return np.append(code_L, np.int32(ABSTAINS))[neighbor_rows(neighbor_ids_QK, labels)], code_Q


def exclude(
    neighbor_ids_QK: Int64Array,
    scores_QK: Float32Matrix,
    group_of_neighbor_QK: Codes,
    group_of_query_Q: Codes,
    k: int,
) -> tuple[Int64Array, Float32Matrix, Int64Array]:
    """Keep each query's first k neighbours that are of another group than the query itself.

    Args:
        neighbor_ids_QK: int64 [Q, K], nearest first, K at least k.
        scores_QK: float32 [Q, K].
        group_of_neighbor_QK: int32 [Q, K]; -1 is no group and equals none.
        group_of_query_Q: int32 [Q], likewise.
        k: Neighbours to keep.

    Returns:
        ids int64 [Q, k] and scores float32 [Q, k], filled up with -1 and -inf; and the rows int64 of the
        queries that have fewer than k left, which a search for more neighbours may help.
    """
    assert neighbor_ids_QK.shape[1] >= k, (neighbor_ids_QK.shape, k)
    own_QK = (group_of_neighbor_QK == group_of_query_Q[:, None]) & (group_of_neighbor_QK != ABSTAINS)
    gone_QK = own_QK | (neighbor_ids_QK == NO_NEIGHBOR)
    first_QK = np.argsort(gone_QK, axis=1, kind="stable")[:, :k]
    gone_Qk = np.take_along_axis(gone_QK, first_QK, axis=1)
    ids_Qk = np.where(gone_Qk, NO_NEIGHBOR, np.take_along_axis(neighbor_ids_QK, first_QK, axis=1))
    scores_Qk = np.where(gone_Qk, np.float32(-np.inf), np.take_along_axis(scores_QK, first_QK, axis=1))
    return ids_Qk, scores_Qk, np.flatnonzero(gone_Qk.any(axis=1))
