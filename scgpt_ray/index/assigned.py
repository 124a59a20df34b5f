"""Queries assigned to the inverted lists of an index, once for all copies of its template, and compared with codes.

Each query is transformed and assigned as if it were alone (see `search`).

Shapes: Q queries, D width, E width behind the vector transforms, P lists searched, W neighbours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from scgpt_ray.errors import ConfigError
from scgpt_ray.index.factory import behind_transforms, reason
from scgpt_ray.schema import Float32Matrix, Int64Array

Bitmap: TypeAlias = npt.NDArray[np.uint8]
"""One bit per id, lowest first."""

_faiss: Any = faiss  # the stubs lack search parameters

_VALUES_PER_THREAD = 800
"""Values of queries from which on a matrix product is faster than one query after the other in each thread.

Measured by faiss's authors with one to 166 threads (pull request 5109). On two threads 200 queries of 100,000 vectors
of width 512 took 1.5 s one by one, as faiss 1.15 compares up to 128,000 values, and 0.16 s by a product.
"""


class Assigned(NamedTuple):
    """Queries as the codes of an index, and those of all copies of its template, are compared with them.

    Attributes:
        queries_QE: float32 [Q, E], after the vector transforms.
        lists_QP: int64 [Q, P], the nearest inverted lists; None without inverted lists.
        distances_QP: float32 [Q, P], distances of their centroids.
    """

    queries_QE: Float32Matrix
    lists_QP: Int64Array | None = None
    distances_QP: Float32Matrix | None = None

    def of(self, rows_q: Int64Array) -> "Assigned":
        """Some of the queries."""
        if self.lists_QP is None or self.distances_QP is None:
            return Assigned(self.queries_QE[rows_q])
        return Assigned(self.queries_QE[rows_q], self.lists_QP[rows_q], self.distances_QP[rows_q])


def assign(index: faiss.Index, queries_QD: Float32Matrix, nprobe: int) -> Assigned:
    """Transform queries, and find their `nprobe` nearest inverted lists, at most all."""
    queries_QE, lists = np.ascontiguousarray(_transformed(index, queries_QD)), behind_transforms(index)
    if not isinstance(lists, faiss.IndexIVF):
        return Assigned(queries_QE)
    with compared(by_product=False):
        distances_QP, lists_QP = lists.quantizer.search(queries_QE, min(nprobe, int(lists.nlist)))
    return Assigned(queries_QE, lists_QP, distances_QP)


def find_assigned(
    index: faiss.Index, assigned: Assigned, width: int, allowed: Bitmap | None
) -> tuple[Int64Array, Float32Matrix]:
    """The `width` nearest codes of an index: ids [Q, width] and scores, best first; -1 and any score for none.

    Args:
        index: The index that queries were assigned to, or another copy of its template.
        assigned: The queries.
        width: Number of neighbours.
        allowed: Ids that may be found; None for all.

    Raises:
        ConfigError: If this kind of index cannot be searched with a filter.
    """
    inner: Any = behind_transforms(index)
    selector = None if allowed is None else _faiss.IDSelectorBitmap(allowed)
    try:
        if assigned.lists_QP is None:
            parameters = None if selector is None else _faiss.SearchParameters(sel=selector)
            with compared(by_product=are_many(assigned.queries_QE)):
                found_QW, ids_QW = inner.search(assigned.queries_QE, width, params=parameters)
        else:
            found_QW, ids_QW = _search_lists(inner, assigned, width, selector)
    except RuntimeError as error:
        raise ConfigError(
            f"this index cannot be searched with a filter: {reason(error)}",
            expected="an index that supports filters, such as Flat or IVF",
            remedy="build the index with --factory auto, or leave the filter out",
        ) from None
    is_cosine = index.metric_type == faiss.METRIC_INNER_PRODUCT
    return ids_QW, found_QW if is_cosine else 1 - found_QW / np.float32(2)


def _search_lists(index: Any, assigned: Assigned, width: int, selector: Any) -> tuple[Float32Matrix, Int64Array]:
    """`search_preassigned` with parameters, which the one of faiss' Python module does not take."""
    assert assigned.lists_QP is not None, "there are inverted lists"
    n = len(assigned.queries_QE)
    found_QW, ids_QW = np.empty((n, width), np.float32), np.empty((n, width), np.int64)
    given = (assigned.queries_QE, width, assigned.lists_QP, assigned.distances_QP, found_QW, ids_QW)
    pointers = [_faiss.swig_ptr(each) if isinstance(each, np.ndarray) else each for each in given]
    parameters = _faiss.SearchParametersIVF(sel=selector, nprobe=assigned.lists_QP.shape[1])
    index.search_preassigned_c(n, *pointers, False, parameters)
    return found_QW, ids_QW


def _transformed(index: faiss.Index, queries_QD: Float32Matrix) -> Float32Matrix:
    """Apply the vector transforms of an index to each query separately."""
    while isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # a C++ vector; the stub is wrong
        for step in map(_faiss.downcast_VectorTransform, map(chain.at, range(chain.size()))):
            if isinstance(step, faiss.LinearTransform):
                matrix_ED = faiss.vector_to_array(step.A).reshape(step.d_out, step.d_in)
                # The sums of einsum, unlike those of a matrix product, do not depend on the number of rows.
                queries_QD = np.einsum("qd,ed->qe", queries_QD, matrix_ED)
                queries_QD += faiss.vector_to_array(step.b) if step.have_bias else 0
            else:
                queries_QD = step.apply(queries_QD)
        index = faiss.downcast_index(index.index)
    return queries_QD


def are_many(queries_QE: Float32Matrix) -> bool:
    """Whether queries are compared faster by a matrix product than one by one."""
    return bool(queries_QE.size >= _VALUES_PER_THREAD * faiss.omp_get_max_threads())


@contextmanager
def compared(*, by_product: bool) -> Iterator[None]:
    """Make faiss compare queries with vectors by a matrix product, or one by one."""
    limit = _faiss.cvar.distance_compute_blas_threshold
    _faiss.cvar.distance_compute_blas_threshold = 0 if by_product else 2**31 - 1
    try:
        yield
    finally:
        _faiss.cvar.distance_compute_blas_threshold = limit
