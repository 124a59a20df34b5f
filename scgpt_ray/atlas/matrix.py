"""Rows of a cells x genes matrix as coordinates, from a file or from memory.

Arrays are h5py datasets or numpy arrays, which slice alike.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse

from scgpt_ray.atlas.ragged import Part, as_part

_DENSE_VALUES = 2**23
"""Values of a dense matrix read at once: 32 MiB of float32."""


class Matrix(Protocol):
    """A matrix read by ranges of rows."""

    def parts(self, first: int, last: int) -> list[Part]:
        """Entries of the rows `first` to `last`, inclusive; row and column numbers are joinids."""

    def fault(self, shape: tuple[int, int]) -> str:
        """Why this is not a valid matrix of the shape; "" if it is."""


@dataclass(frozen=True)
class CsrRows:
    """A CSR matrix; columns within a row may be unordered and may repeat."""

    indptr: Any
    indices: Any
    data: Any
    shape: tuple[int, int]

    def parts(self, first: int, last: int) -> list[Part]:
        """See `Matrix`."""
        bounds = np.asarray(self.indptr[first : last + 2], dtype=np.int64)
        rows = np.repeat(np.arange(first, last + 1), np.diff(bounds))
        return [as_part(rows, self.indices[bounds[0] : bounds[-1]], self.data[bounds[0] : bounds[-1]])]

    def fault(self, shape: tuple[int, int]) -> str:
        """See `Matrix`."""
        bounds = np.asarray(self.indptr[:], dtype=np.int64)
        if self.shape != shape:
            return f"shape {self.shape[0]} x {self.shape[1]}, but obs x var is {shape[0]} x {shape[1]}"
        if len(bounds) != shape[0] + 1 or bounds[0] != 0 or (np.diff(bounds) < 0).any():
            return "indptr is invalid"
        if not bounds[-1] == len(self.indices) == len(self.data):
            return f"{len(self.indices)} indices and {len(self.data)} values, but indptr ends at {bounds[-1]}"
        return ""


@dataclass(frozen=True)
class DenseRows:
    """A dense matrix."""

    values: Any

    def parts(self, first: int, last: int) -> list[Part]:
        """See `Matrix`."""
        step = max(1, _DENSE_VALUES // max(1, self.values.shape[1]))
        parts = []
        for start in range(first, last + 1, step):
            values = np.asarray(self.values[start : min(start + step, last + 1)])
            rows, columns = np.nonzero(values)
            parts.append(as_part(rows + start, columns, values[rows, columns]))
        return parts

    def fault(self, shape: tuple[int, int]) -> str:
        """See `Matrix`."""
        if self.values.shape != shape:
            return f"shape {self.values.shape}, but obs x var is {shape[0]} x {shape[1]}"
        return ""


def csr_rows(matrix: Any) -> CsrRows:
    """Wrap a scipy sparse matrix of any format; CSR is not copied."""
    csr = scipy.sparse.csr_matrix(matrix)
    return CsrRows(csr.indptr, csr.indices, csr.data, csr.shape)
