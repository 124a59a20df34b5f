"""The template: a trained, empty index that all shards start from, so that their scores can be compared."""

from typing import Any

import faiss
import numpy as np

from scgpt_ray.errors import InputError, ReferenceSetError
from scgpt_ray.index.centroids import centroids_of
from scgpt_ray.index.factory import MIN_ROWS_PER_LIST, empty_index, inverted_lists, reason
from scgpt_ray.index.gpu import Place
from scgpt_ray.index.search import one_thread
from scgpt_ray.schema import Float32Matrix

_ALONE = "\x01"  # faiss says so of centroids that are no result of k-means


def train(sample_ND: Float32Matrix, factory: str, *, seed: int, place: Place | None = None) -> bytes:
    """Train an index on a sample of vectors.

    The bytes are a function of the sample and the seed on a given type of CPU: threads share the work of k-means
    in fixed blocks, and everything else is done by one, a graph over the centroids included.

    Args:
        sample_ND: float32 [n, d], L2-normalised; may have no rows where the index needs no training.
        factory: A faiss factory string.
        seed: Seed of k-means, below 2**31.
        place: GPUs that compare the centroids, as `gpu.gpus` offers them.

    Returns:
        The serialised index, empty, ready for `open_template`.

    Raises:
        ConfigError: If faiss refuses the factory string.
        InputError: If there are too few rows for its inverted lists or its codebook, or one is not finite.
    """
    index = empty_index(factory, sample_ND.shape[1])
    if not index.is_trained:
        _require(index, factory, sample_ND)
        try:
            with one_thread() as threads:
                _train_lists(index, sample_ND, seed, threads, place)
                index.train(sample_ND)  # what has been trained is left as it is
        except RuntimeError as error:
            raise InputError(
                f"--factory {factory} cannot be trained on {len(sample_ND):,} cells: {reason(error)}",
                expected="enough embeddings for its codebook",
                remedy="use --factory auto",
            ) from None
    return faiss.serialize_index(index).tobytes()


def _require(index: faiss.Index, factory: str, sample_ND: Float32Matrix) -> None:
    """Refuse a sample that faiss would train something odd on.

    Raises:
        InputError: Where it is too small for the lists, or not finite.
    """
    n, lists = len(sample_ND), inverted_lists(index)
    if lists is not None and n < MIN_ROWS_PER_LIST * lists.nlist:
        raise InputError(
            f"--factory {factory}: {n:,} cells to train {lists.nlist:,} inverted lists",
            expected=f"at least {MIN_ROWS_PER_LIST} cells a list, {MIN_ROWS_PER_LIST * lists.nlist:,} in all",
            remedy=f"use at most {n // MIN_ROWS_PER_LIST:,} lists, or Flat",
        )
    odd = int((~np.isfinite(np.einsum("nd->n", sample_ND))).sum())
    if odd:
        raise InputError(
            f"{odd:,} of {n:,} cells to train on have NaN or infinity in their embedding",
            expected="finite embeddings",
            remedy="see scgpt-ray validate --embeddings, and embed these cells again",
        )


def _train_lists(index: faiss.Index, sample_ND: Float32Matrix, seed: int, threads: int, place: Place | None) -> None:
    """Train the transforms of an index and the centroids of its lists, which take nearly all of the time."""
    lists = inverted_lists(index)
    if lists is None:
        return
    lists.cp.seed = seed  # for lists in front of a refinement, which faiss trains
    while isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # a C++ vector, whatever the stub says
        for step in range(chain.size()):
            chain.at(step).train(sample_ND)
            sample_ND = chain.at(step).apply(sample_ND)
        index = faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexIVF) and index.quantizer_trains_alone != _ALONE:
        centroids_KD = centroids_of(
            sample_ND, index.nlist, rounds=index.cp.niter, seed=seed, threads=threads, place=place
        )
        index.quantizer.train(centroids_KD)
        index.quantizer.add(centroids_KD)


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
