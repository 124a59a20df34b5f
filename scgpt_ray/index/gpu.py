"""Training and adding with the GPUs that faiss has; the index itself stays one of the CPU, and so does its file.

What costs is finding the nearest of many centroids, in k-means and for every vector that is added. Only that goes to
the GPUs: k-means gets a clustering index there, and while vectors are added, a copy of the centroids finds the lists.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import faiss

from scgpt_ray.index.factory import inverted_lists

Place: TypeAlias = Callable[[faiss.Index], faiss.Index]
"""Copies a flat index to where it is to be searched."""


def gpus() -> Place | None:
    """Where centroids are compared: all GPUs of this process, or None where faiss has none."""
    return faiss.index_cpu_to_all_gpus if faiss.get_num_gpus() else None


@contextmanager
def assigning(index: faiss.Index, place: Place | None) -> Iterator[None]:
    """Let an index that is added to find the lists of its vectors elsewhere."""
    lists = inverted_lists(index)
    if place is None or lists is None:
        yield
        return
    own = faiss.downcast_index(lists.quantizer)
    flat = faiss.IndexFlat(lists.d, lists.metric_type)
    flat.add(own.reconstruct_n(0, lists.nlist))
    elsewhere = place(flat)
    owned, lists.own_fields = lists.own_fields, False
    lists.quantizer = elsewhere
    try:
        yield
    finally:
        lists.quantizer = own
        lists.own_fields = owned
