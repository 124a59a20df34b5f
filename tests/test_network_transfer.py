"""Tokens on their way to a device."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.network.transfer import ALIGNMENT, CudaTransfer, HostTransfer, pack, unpack

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def arrays(sizes, seed=0):
    random = np.random.default_rng(seed)
    dtypes = (np.uint16, np.uint8, np.int32)
    return [random.integers(0, 200, n).astype(dtype) for n, dtype in zip(sizes, dtypes, strict=False)]


@given(st.lists(st.integers(0, 70), min_size=1, max_size=3))
def test_arrays_share_a_buffer(sizes):
    sent = arrays(sizes)
    buffer = np.full(sum(array.nbytes + ALIGNMENT for array in sent), 255, np.uint8)
    pack(sent, buffer)
    for array, view in zip(sent, unpack(torch.from_numpy(buffer), sent), strict=True):
        assert view.numpy().dtype == array.dtype
        assert np.array_equal(view.numpy(), array)


def test_the_host_keeps_a_copy_of_its_own():
    (sent,) = arrays([5])
    sent.flags.writeable = False
    (arrived,) = HostTransfer().send([sent])
    assert np.array_equal(arrived.numpy(), sent)
    assert arrived.data_ptr() != sent.ctypes.data
    assert np.array_equal(HostTransfer().fetch(arrived)(), sent)


@pytest.mark.parametrize("_where", [pytest.param("cuda", marks=gpu)])
def test_cuda_and_back(_where):
    transfer = CudaTransfer(torch.device("cuda"))
    for i in range(20):  # the two buffers grow, and are used again while copies are on their way
        sent = arrays([1000 * (i % 7), 3000, 10], seed=i)
        arrived = transfer.send(sent)
        fetches = [transfer.fetch(x.float()) for x in arrived]
        for array, fetch in zip(sent, fetches, strict=True):
            assert np.array_equal(fetch(), array.astype(np.float32))
