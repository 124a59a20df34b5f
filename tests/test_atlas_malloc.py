import numpy as np
import pytest

from scgpt_ray.atlas.malloc import keep_freed_memory


def test_a_heap_that_keeps_freed_memory_gets_no_pages_twice():
    resource = pytest.importorskip("resource")
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.full(20 * 2**20, 1, np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(3)) < 100, "20 MiB are 5,120 pages"
