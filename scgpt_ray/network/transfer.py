"""Transfer of tokens to a device and of embeddings back, overlapped with computation."""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[np.generic]

Fetch: TypeAlias = Callable[[], npt.NDArray[np.float32]]
"""Waits until values have arrived on the host, and returns them."""

ALIGNMENT = 16
"""Arrays begin at multiples of so many bytes in a buffer, so that it can be viewed in any dtype."""


class Transfer(Protocol):
    """Transfer between host and device memory."""

    def send(self, arrays: Sequence[Array]) -> list[Tensor]:
        """Copy flat arrays to the device; dtypes are kept, and the arrays may be changed afterwards."""

    def fetch(self, values: Tensor) -> Fetch:
        """Start copying float32 values to the host."""


class HostTransfer:
    """Transfer for CPUs, where host and device memory are the same."""

    def send(self, arrays: Sequence[Array]) -> list[Tensor]:
        """Copy the arrays: memory of Arrow is read-only, which torch does not support."""
        return [torch.from_numpy(array.copy()) for array in arrays]

    def fetch(self, values: Tensor) -> Fetch:
        """Return the values without a copy."""
        return values.numpy


class CudaTransfer:
    """Transfer with two alternating pinned buffers and a separate stream, so that it overlaps with computation.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = itertools.cycle([_Slot(), _Slot()])

    def send(self, arrays: Sequence[Array]) -> list[Tensor]:
        """Copy all arrays at once; waits only until the copy before the last one has left its buffer."""
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
        """Queue a copy after the work queued so far; later work is not waited for."""
        host = values.to("cpu", non_blocking=True)  # torch allocates pinned memory for it
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self._device))

        def wait() -> npt.NDArray[np.float32]:
            arrived.synchronize()
            return np.array(host)  # a copy: torch reuses the pinned memory

        return wait


class _Slot:
    """A pinned buffer that grows to the largest microbatch, with an event set when its content has been copied."""

    def __init__(self) -> None:
        self.left = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def fill(self, arrays: Sequence[Array]) -> Tensor:
        """Write arrays into the buffer; returns the part that holds them."""
        size = sum(_room(array) for array in arrays)
        if size > len(self._buffer):
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        pack(arrays, self._buffer.numpy())
        return self._buffer[:size]


def pack(arrays: Sequence[Array], buffer: npt.NDArray[np.uint8]) -> None:
    """Write flat arrays one after the other, aligned, into a buffer of bytes."""
    start = 0
    for array in arrays:
        buffer[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8)
        start += _room(array)


def unpack(packed: Tensor, arrays: Sequence[Array]) -> list[Tensor]:
    """Views of the arrays that `pack` wrote; `arrays` gives their lengths and dtypes."""
    views, start = [], 0
    for array in arrays:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        views.append(packed[start : start + array.nbytes].view(dtype))
        start += _room(array)
    return views


def _room(array: Array) -> int:
    """Aligned size of an array in a buffer, in bytes."""
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT
