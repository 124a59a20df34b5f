"""k-means on the training sample. Centroids depend on the sample and the seed only.

faiss assigns vectors to centroids with one multi-threaded matrix product. In some BLAS kernels the last bit of an entry
depends on its position and on the number of threads (see `search`), which is enough to move a centroid. Here vectors
are assigned in blocks of fixed size, one thread per block.
"""

import faiss
import numpy as np

from scgpt_ray.index.gpu import ToGpus
from scgpt_ray.index.search import in_threads
from scgpt_ray.schema import Float32Matrix, Int64Array

_BLOCK_ROWS = 4096  # the block size of faiss


def centroids_of(
    sample_ND: Float32Matrix, k: int, *, rounds: int, seed: int, threads: int, to_gpus: ToGpus | None = None
) -> Float32Matrix:
    """Lloyd's k-means, initialised with k random vectors; an empty cluster is re-initialised with another one.

    Args:
        sample_ND: float32 [n, d], finite.
        k: Number of centroids, at most n.
        rounds: Number of iterations.
        seed: Seed of the initial vectors.
        threads: Number of threads; has no effect on the result.
        to_gpus: Assigns vectors on GPUs instead (`gpu.gpus`).

    Returns:
        float32 [k, d].
    """
    random = np.random.default_rng(seed)
    flat = faiss.IndexFlatL2(sample_ND.shape[1])
    index = flat if to_gpus is None else to_gpus(flat)
    centroids_KD = sample_ND[random.choice(len(sample_ND), k, replace=False)]
    for _ in range(rounds):
        index.reset()
        index.add(centroids_KD)
        nearest_N = _nearest(index, sample_ND, threads) if to_gpus is None else index.search(sample_ND, 1)[1][:, 0]
        sizes_K = np.bincount(nearest_N, minlength=k)
        means_KD = _sums(sample_ND, nearest_N, k) / np.maximum(sizes_K, 1, dtype=np.float32)[:, None]
        centroids_KD = np.asarray(means_KD, np.float32)
        empty = np.flatnonzero(sizes_K == 0)
        centroids_KD[empty] = sample_ND[random.choice(len(sample_ND), len(empty), replace=False)]
    return centroids_KD


def _nearest(index: faiss.Index, vectors_ND: Float32Matrix, threads: int) -> Int64Array:
    def compare(start: int) -> Int64Array:
        rows_N1: Int64Array = index.search(vectors_ND[start : start + _BLOCK_ROWS], 1)[1]
        return rows_N1[:, 0]

    return np.concatenate(in_threads(compare, range(0, len(vectors_ND), _BLOCK_ROWS), threads))


def _sums(vectors_ND: Float32Matrix, list_N: Int64Array, k: int) -> Float32Matrix:
    """Sum of the vectors of each list, float32 [k, d]; the order of addition is fixed."""
    from scipy import sparse  # imported here: it takes 0.16 s, and a search does not need it

    n = len(vectors_ND)
    one_KN = sparse.csc_array((np.ones(n, np.float32), list_N, np.arange(n + 1)), shape=(k, n))
    return np.asarray(one_KN @ vectors_ND)
