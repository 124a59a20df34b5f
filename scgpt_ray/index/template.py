"""The template: a trained, empty index. All shards are copies of it, which makes their scores comparable."""

from typing import Any

import faiss
import numpy as np

from scgpt_ray.errors import InputError, ReferenceSetError
from scgpt_ray.index.centroids import centroids_of
from scgpt_ray.index.factory import MIN_ROWS_PER_LIST, empty_index, inverted_lists, reason
from scgpt_ray.index.gpu import ToGpus
from scgpt_ray.index.search import one_thread
from scgpt_ray.schema import Float32Matrix

_ALONE = "\x01"  # value of quantizer_trains_alone for centroids that do not come from k-means


def train(sample_ND: Float32Matrix, factory: str, *, seed: int, to_gpus: ToGpus | None = None) -> bytes:
    """Train an index on a sample of vectors.

    On a given type of CPU the bytes are a function of the sample and the seed: k-means runs in blocks of fixed size
    whatever the number of threads, and the rest (including the graph over the centroids) in one thread.

    Args:
        sample_ND: float32 [n, d], L2-normalised; may be empty if the index needs no training.
        factory: A faiss factory string.
        seed: Seed of k-means, below 2**31.
        to_gpus: Runs k-means on GPUs (`gpu.gpus`).

    Returns:
        The serialised empty index, for `open_template`.

    Raises:
        ConfigError: If faiss refuses the factory string.
        InputError: If there are too few rows for its inverted lists or its codebook, or a value is not finite.
    """
    index = empty_index(factory, sample_ND.shape[1])
    if not index.is_trained:
        _require(index, factory, sample_ND)
        try:
            with one_thread() as threads:
                _train_lists(index, sample_ND, seed, threads, to_gpus)
                index.train(sample_ND)  # skips what is trained already
        except RuntimeError as error:
            raise InputError(
                f"--factory {factory} cannot be trained on {len(sample_ND):,} cells: {reason(error)}",
                expected="enough embeddings for its codebook",
                remedy="use --factory auto",
            ) from None
    return faiss.serialize_index(index).tobytes()


def _require(index: faiss.Index, factory: str, sample_ND: Float32Matrix) -> None:
    """Check that a training sample is large enough and finite: faiss would train a bad index without an error.

    Raises:
        InputError: If it is not.
    """
    n = len(sample_ND)
    require_rows(index, factory, n)
    n_invalid = int((~np.isfinite(np.einsum("nd->n", sample_ND))).sum())
    if n_invalid:
        raise InputError(
            f"{n_invalid:,} of {n:,} cells to train on have NaN or infinity in their embedding",
            expected="finite embeddings",
            remedy="find these cells with scgpt-ray validate --embeddings, and embed them again",
        )


def require_rows(index: faiss.Index, factory: str, n: int) -> None:
    """Check that n cells are enough to train the inverted lists of an index.

    Raises:
        InputError: If they are not.
    """
    lists = inverted_lists(index)
    if lists is not None and n < MIN_ROWS_PER_LIST * lists.nlist:
        raise InputError(
            f"--factory {factory}: {n:,} cells to train {lists.nlist:,} inverted lists",
            expected=f"at least {MIN_ROWS_PER_LIST} cells per list, {MIN_ROWS_PER_LIST * lists.nlist:,} in all",
            remedy=f"use at most {n // MIN_ROWS_PER_LIST:,} lists, or Flat",
        )


def _train_lists(index: faiss.Index, sample_ND: Float32Matrix, seed: int, threads: int, to_gpus: ToGpus | None) -> None:
    """Train the transforms of an index and the centroids of its lists, which is nearly all of the training time."""
    lists = inverted_lists(index)
    if lists is None:
        return
    lists.cp.seed = seed  # for an IndexRefine, whose lists faiss trains itself
    while isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # a C++ vector; the stub is wrong
        for step in range(chain.size()):
            chain.at(step).train(sample_ND)
            sample_ND = chain.at(step).apply(sample_ND)
        index = faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexIVF) and index.quantizer_trains_alone != _ALONE:
        centroids_KD = centroids_of(
            sample_ND, index.nlist, rounds=index.cp.niter, seed=seed, threads=threads, to_gpus=to_gpus
        )
        index.quantizer.train(centroids_KD)
        index.quantizer.add(centroids_KD)


def open_template(content: bytes) -> faiss.Index:
    """Deserialise an index; each call makes a new one.

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
    """Free the table of distances between centroids and codebook that faiss computes when it opens residual codes.

    It takes 64 bytes per list and 4 bits of code in every shard: 168 MB at 65,536 lists and codes of 20 bytes. Without
    it a search computes a little more per list, which does not show next to scanning the codes.
    """
    lists = inverted_lists(index)
    if isinstance(lists, faiss.IndexIVFPQFastScan):
        lists.use_precomputed_table = -1
        lists.precompute_table()
    return index


def centre_of(sample_ND: Float32Matrix) -> Float32Matrix:
    """The mean of a sample, float32 [d], subtracted from vectors before rounding; zero for an empty sample."""
    if not len(sample_ND):
        return np.zeros(sample_ND.shape[1], np.float32)
    return np.asarray(sample_ND.mean(axis=0, dtype=np.float64), np.float32)
