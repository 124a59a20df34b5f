"""k-means over the training sample: the centroids are a function of the sample and the seed alone.

faiss compares vectors with centroids by a matrix product that all threads share. Some kernels round an entry by its
place in the product and by the number of threads (see `search`), and one last bit moves a centroid. So vectors are
compared in blocks of fixed size here, each by one thread.
"""

import faiss
import numpy as np

from scgpt_ray.index.gpu import Place
from scgpt_ray.index.search import in_threads
from scgpt_ray.schema import Float32Matrix, Int64Array

_BLOCK_ROWS = 4096  # what faiss multiplies at once


def centroids_of(
    sample_ND: Float32Matrix, k: int, *, rounds: int, seed: int, threads: int, place: Place | None = None
) -> Float32Matrix:
    """Lloyd's k-means from k vectors of the sample; a centroid without vectors starts again from one of them.

    Args:
        sample_ND: float32 [n, d], finite.
        k: Number of centroids, at most n.
        rounds: Times that vectors are assigned and centroids moved.
        seed: Decides which vectors it starts from.
        threads: How many compare; without effect on the result.
        place: GPUs that compare instead, as `gpu.gpus` offers them.

    Returns:
        float32 [k, d].
    """
    random = np.random.default_rng(seed)
    flat = faiss.IndexFlatL2(sample_ND.shape[1])
    index = flat if place is None else place(flat)
    centroids_KD = sample_ND[random.choice(len(sample_ND), k, replace=False)]
    for _ in range(rounds):
        index.reset()
        index.add(centroids_KD)
        nearest_N = _nearest(index, sample_ND, threads) if place is None else index.search(sample_ND, 1)[1][:, 0]
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
    """Sum of the vectors of each list, float32 [k, d], added in their order."""
    from scipy import sparse  # 0.16 s that a search can do without

    n = len(vectors_ND)
    one_KN = sparse.csc_array((np.ones(n, np.float32), list_N, np.arange(n + 1)), shape=(k, n))
    return np.asarray(one_KN @ vectors_ND)
