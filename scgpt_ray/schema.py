"""The Arrow tables that flow between the rooms, one row per cell.

    CELLS       soma_joinid  obs...  gene list<int32>           count list<float>
    TOKENS      soma_joinid  obs...  n_genes  content_digest  gene list<uint16> bin list<uint8>
    COUNTS      soma_joinid  obs...  n_genes  content_digest  gene list<uint16> count list<float>
    EMBEDDINGS  soma_joinid  obs...  n_genes  content_digest  embedding fixed_size_list<float>[d]
    NEIGHBORS   soma_joinid  neighbor fixed_size_list<int64>[k]  score fixed_size_list<float>[k]

COUNTS are what principal components take instead of TOKENS.
`obs...` are the columns a run was asked to carry along. A ragged column is the pair (offsets, values) that CSR calls
`indptr`, attention `cu_seqlens` and faiss `lims`; `ragged` and `ragged_array` are the only way in and out of it.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64Array: TypeAlias = npt.NDArray[np.int64]
"""Joinids, counts of cells and faiss ids."""

Float32Matrix: TypeAlias = npt.NDArray[np.float32]
"""Embeddings [n_cells, d]."""

JOINID = "soma_joinid"
OBS_ID = "obs_id"
GENE = "gene"
COUNT = "count"
BIN = "bin"
N_GENES = "n_genes"
EMBEDDING = "embedding"
NEIGHBOR = "neighbor"
SCORE = "score"
CONTENT = "content_digest"
"""Digest of the genes and bin ranges of a cell, uint64; cells that share it have the same tokens and embedding."""

COUNTERS = ("tokens_per_microbatch", "cells_overflowed")
"""Keys of the description of an actor (`Embedder.describe`) whose values change during a run."""

CLS_BIN = 0
"""Bin code of <cls>, which begins each sequence of tokens of a cell; those of genes are larger."""

RESERVED = frozenset({JOINID, GENE, COUNT, BIN, N_GENES, EMBEDDING, NEIGHBOR, SCORE, CONTENT})
"""Names that an obs column carried along must not have."""

DATASET_ID = "dataset_id"
OBSERVATION = "observation_joinid"
"""obs columns of CELLxGENE that together identify a cell in all releases of the Census, as soma_joinid does not."""

NO_LABEL = frozenset({"", "unknown", "nan", "none"})
"""Texts of a label column, in lower case, that say that a cell's label is not known; so does null."""


def known_texts(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Labels as text, null where they are not known (`NO_LABEL`)."""
    texts = values.cast(pa.string())
    unknown = pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(texts)), value_set=pa.array(sorted(NO_LABEL)))
    return pc.if_else(unknown, pa.scalar(None, pa.string()), texts)


def ragged(column: pa.Array | pa.ChunkedArray) -> tuple[Int64Array, npt.NDArray[np.generic]]:
    """Take a list column apart into boundaries and values.

    Args:
        column: A list or large_list column without nulls; sliced and chunked columns are welcome.

    Returns:
        offsets: int64 [n + 1], starting at 0.
        values: [offsets[-1]], the flat values; a view of Arrow's memory (read-only) where there is one chunk.
    """
    array = _whole(column)
    assert array.null_count == 0, "a ragged column has no nulls: an empty cell is an empty list"
    if len(array) == 0:
        return np.zeros(1, np.int64), array.values.slice(0, 0).to_numpy()
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy()
    return offsets - offsets[0], values


def one_type(values: npt.NDArray[np.generic], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """View an array as the one type for which numba compiles a kernel: of this dtype, contiguous, and read-only."""
    view = np.require(values, dtype, ["C", "A"]).view()
    view.flags.writeable = False
    return view


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece; only several chunks are copied, while `combine_chunks` always copies."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def ragged_array(offsets: npt.NDArray[np.integer], values: npt.NDArray[np.generic]) -> pa.ListArray:
    """Make a list array of boundaries and values, without copying the values.

    Args:
        offsets: Integers [n + 1], starting at 0 and ending at len(values), below 2**31.
        values: [offsets[-1]], any Arrow primitive dtype.
    """
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def matrix(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.generic]:
    """View a fixed_size_list column without nulls as [n, width]; zero-copy where it is one chunk."""
    array = _whole(column)
    assert array.null_count == 0, "select the cells that have an embedding first"
    width = array.type.list_size
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False)).reshape(len(array), width)


def dense_vectors(column: pa.ChunkedArray) -> Float32Matrix:
    """Embeddings of cells as float32 [n_cells, d]; rows of NaN for null."""
    vectors_ND = np.full((len(column), column.type.list_size), np.nan, np.float32)
    vectors_ND[column.is_valid().to_numpy()] = matrix(column.drop_null())
    return vectors_ND


def matrix_array(values: npt.NDArray[np.generic], absent: npt.NDArray[np.bool_] | None = None) -> pa.FixedSizeListArray:
    """Make a fixed_size_list array of the rows of a matrix.

    Args:
        values: [n, width], C-contiguous.
        absent: bool [n]; rows that become null. None for no nulls.
    """
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    mask = pa.array(absent) if absent is not None and absent.any() else None
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask)


def embedded(cells: pa.Table, vectors_ND: Float32Matrix, absent_N: npt.NDArray[np.bool_]) -> pa.Table:
    """EMBEDDINGS of TOKENS or COUNTS.

    Args:
        cells: One row per cell.
        vectors_ND: Their vectors, C-contiguous.
        absent_N: Cells without one.
    """
    kept = [name for name in cells.column_names if name not in (GENE, BIN, COUNT)]
    return cells.select(kept).append_column(EMBEDDING, matrix_array(vectors_ND, absent_N))


def obs_columns(table: pa.Table) -> list[str]:
    """Names of the carried obs columns of any of the five tables, in order."""
    return [name for name in table.column_names if name not in RESERVED]
