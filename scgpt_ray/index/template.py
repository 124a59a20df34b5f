"""The template: a trained, empty index that all shards start from, so that their scores can be compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from scgpt_ray.errors import InputError, ReferenceSetError
from scgpt_ray.index.factory import MIN_ROWS_PER_LIST, empty_index, inverted_lists, reason
from scgpt_ray.index.gpu import Place, clustering
from scgpt_ray.schema import Float32Matrix


def train(sample_ND: Float32Matrix, factory: str, *, seed: int, place: Place | None = None) -> bytes:
    """Train an index on a sample of vectors.

    The bytes are a function of the sample and the seed: k-means draws from the seed, and a graph over the
    centroids is grown by one thread.

    Args:
        sample_ND: float32 [n, d], L2-normalised; may have no rows where the index needs no training.
        factory: A faiss factory string.
        seed: Seed of k-means, below 2**31.
        place: GPUs that compare the centroids, as `gpu.gpus` offers them.

    Returns:
        The serialised index, empty, ready for `open_template`.

    Raises:
        ConfigError: If faiss refuses the factory string.
        InputError: If there are too few rows for its inverted lists, or for its codebook.
    """
    index = empty_index(factory, sample_ND.shape[1])
    if not index.is_trained:
        _require_rows(index, factory, len(sample_ND))
        lists = inverted_lists(index)
        if lists is not None:
            lists.cp.seed = seed
        try:
            with _graph_afterwards(index), clustering(index, place):
                index.train(sample_ND)
        except RuntimeError as error:
            raise InputError(
                f"--factory {factory} cannot be trained on {len(sample_ND):,} cells: {reason(error)}",
                expected="enough finite embeddings for its codebook",
                remedy="use --factory auto",
            ) from None
    return faiss.serialize_index(index).tobytes()


def _require_rows(index: faiss.Index, factory: str, n_rows: int) -> None:
    lists = inverted_lists(index)
    if lists is None or n_rows >= MIN_ROWS_PER_LIST * lists.nlist:
        return
    raise InputError(
        f"--factory {factory}: {n_rows:,} cells to train {lists.nlist:,} inverted lists",
        expected=f"at least {MIN_ROWS_PER_LIST} cells a list, {MIN_ROWS_PER_LIST * lists.nlist:,} in all",
        remedy=f"use at most {n_rows // MIN_ROWS_PER_LIST:,} lists, or Flat",
    )


@contextmanager
def _graph_afterwards(index: faiss.Index) -> Iterator[None]:
    """Train with plain centroids, and grow the graph over them when that is done, by one thread.

    faiss inserts into an HNSW graph with all threads, and their race decides the links.
    """
    lists = inverted_lists(index)
    if lists is None or not isinstance(faiss.downcast_index(lists.quantizer), faiss.IndexHNSW):
        yield
        return
    graph, owned = faiss.downcast_index(lists.quantizer), lists.own_fields
    flat = faiss.IndexFlat(lists.d, lists.metric_type)
    lists.quantizer, lists.own_fields = flat, False
    try:
        yield
    finally:
        lists.quantizer, lists.own_fields = graph, owned
    n_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    graph.add(flat.reconstruct_n(0, lists.nlist))
    faiss.omp_set_num_threads(n_threads)


def transformed(index: faiss.Index, vectors_ND: Float32Matrix) -> Float32Matrix:
    """Vectors as the innermost index sees them, behind rotations and the like."""
    while isinstance(index, faiss.IndexPreTransform | faiss.IndexIDMap):
        if isinstance(index, faiss.IndexPreTransform):
            chain: Any = index.chain  # a C++ vector, whatever the stub says
            for step in range(chain.size()):
                vectors_ND = chain.at(step).apply(vectors_ND)
        index = faiss.downcast_index(index.index)
    return vectors_ND


def open_template(content: bytes) -> faiss.Index:
    """The index of serialised bytes, private to the caller.

    Raises:
        ReferenceSetError: If the bytes are not a faiss index.
    """
    try:
        return without_table(faiss.deserialize_index(np.frombuffer(content, np.uint8)))
    except RuntimeError as error:
        raise ReferenceSetError(
            f"a faiss index of {len(content):,} bytes cannot be read: {reason(error)}",
            expected="a whole file that faiss wrote",
            remedy="build the index again",
        ) from None


def without_table(index: faiss.Index) -> faiss.Index:
    """Give back the table of distances between centroids and codebook that faiss makes when it opens residual codes.

    It takes 64 bytes for each list and each four bits of code, in every shard: 168 MB at 65,536 lists and 20 bytes.
    Without it a search subtracts and multiplies a little more for each list, which the scan of its codes hides.
    """
    lists = inverted_lists(index)
    if isinstance(lists, faiss.IndexIVFPQFastScan):
        lists.use_precomputed_table = -1
        lists.precompute_table()
    return index


def centre_of(sample_ND: Float32Matrix) -> Float32Matrix:
    """What vectors are halved around: the mean of a sample, float32 [d]; zero where there is none."""
    if not len(sample_ND):
        return np.zeros(sample_ND.shape[1], np.float32)
    return np.asarray(sample_ND.mean(axis=0, dtype=np.float64), np.float32)
