"""The way of tokens to a device and of embeddings back, beside its computing."""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[np.generic]

Fetch: TypeAlias = Callable[[], npt.NDArray[np.float32]]
"""Waits for values that are on their way to the host, and returns them."""

ALIGNMENT = 16
"""Bytes between whose multiples arrays begin in a buffer; views of any dtype are then possible."""


class Transfer(Protocol):
    """Between this process' memory and a device."""

    def send(self, arrays: Sequence[Array]) -> list[Tensor]:
        """Copy flat arrays to the device as narrow as they are; the arrays may change afterwards."""

    def fetch(self, values: Tensor) -> Fetch:
        """Begin to copy float32 values back."""


class HostTransfer:
    """On a CPU there is nothing to move."""

    def send(self, arrays: Sequence[Array]) -> list[Tensor]:
        """Copy: Arrow's memory is read-only, which torch does not know."""
        return [torch.from_numpy(array.copy()) for array in arrays]

    def fetch(self, values: Tensor) -> Fetch:
        """Hand them over."""
        return values.numpy


class CudaTransfer:
    """Two pinned buffers, filled in turn, and a stream of their own: a microbatch travels while another computes.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = itertools.cycle([_Slot(), _Slot()])

    def send(self, arrays: Sequence[Array]) -> list[Tensor]:
        """One copy for all arrays; waits only if the last copy but one has not yet left its buffer."""
        slot = next(self._slots)
        slot.left.synchronize()
        packed = slot.fill(arrays)
        with torch.cuda.stream(self._copying):
            arrived = packed.to(self._device, non_blocking=True)
            slot.left.record(self._copying)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copying)
        arrived.record_stream(computing)
        return unpack(arrived, arrays)

    def fetch(self, values: Tensor) -> Fetch:
        """Copy behind what is queued by now; work that is queued later is not waited for."""
        host = values.to("cpu", non_blocking=True)  # pinned memory, by torch's own rule
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self._device))

        def wait() -> npt.NDArray[np.float32]:
            arrived.synchronize()
            return np.array(host)  # out of the pinned memory, which torch uses again

        return wait


class _Slot:
    """A pinned buffer that grows to the largest microbatch, and when its content has left it."""

    def __init__(self) -> None:
        self.left = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def fill(self, arrays: Sequence[Array]) -> Tensor:
        """The part of the buffer that now holds the arrays."""
        size = sum(_room(array) for array in arrays)
        if size > len(self._buffer):
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        pack(arrays, self._buffer.numpy())
        return self._buffer[:size]


def pack(arrays: Sequence[Array], buffer: npt.NDArray[np.uint8]) -> None:
    """Lay flat arrays one after the other into a buffer of bytes."""
    start = 0
    for array in arrays:
        buffer[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8)
        start += _room(array)


def unpack(packed: Tensor, arrays: Sequence[Array]) -> list[Tensor]:
    """Views of what `pack` laid down, with the lengths and dtypes of the arrays."""
    views, start = [], 0
    for array in arrays:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        views.append(packed[start : start + array.nbytes].view(dtype))
        start += _room(array)
    return views


def _room(array: Array) -> int:
    """Bytes that an array takes in a buffer."""
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT
