"""Building an index with GPUs. The index itself, and its file, stay CPU ones.

Nearly all of the time goes to finding the nearest centroid, in k-means and for every added vector. Only this search
runs on GPUs, on a copy of the centroids.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import faiss

from scgpt_ray.index.factory import inverted_lists

ToGpus: TypeAlias = Callable[[faiss.Index], faiss.Index]
"""Copies a flat CPU index to GPUs."""


def gpus() -> ToGpus | None:
    """A copy function to all GPUs of this process; None if faiss sees none."""
    return faiss.index_cpu_to_all_gpus if faiss.get_num_gpus() else None


@contextmanager
def assigning(index: faiss.Index, to_gpus: ToGpus | None) -> Iterator[None]:
    """Within this context, vectors that are added to the index find their lists on GPUs."""
    lists = inverted_lists(index)
    if to_gpus is None or lists is None:
        yield
        return
    on_cpu = faiss.downcast_index(lists.quantizer)
    flat = faiss.IndexFlat(lists.d, lists.metric_type)
    flat.add(on_cpu.reconstruct_n(0, lists.nlist))
    on_gpus = to_gpus(flat)
    owned, lists.own_fields = lists.own_fields, False
    lists.quantizer = on_gpus
    try:
        yield
    finally:
        lists.quantizer = on_cpu
        lists.own_fields = owned
