"""A file of an object store as a file object that reads ranges."""

import io
from collections import OrderedDict
from typing import Any

import pyarrow.fs as pafs

from scgpt_ray.patience import patiently

_BLOCK = 2**18
_BLOCKS = 64


class RangedFile(io.RawIOBase):
    """Reads by ranges, and waits for a store that is away.

    Small reads, of which HDF5 makes thousands, are served from the last 64 blocks of 256 KiB; large ones are one
    request each.

    Args:
        filesystem: Of the store.
        path: Bucket and key.

    Raises:
        FileNotFoundError: If it does not exist.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self._file = patiently(lambda: filesystem.open_input_file(path), path)
        self._path, self._place = path, 0
        self._size = int(patiently(self._file.size, path))
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place, which may be behind the end."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """The place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read as much as fits, or as there is."""
        n_bytes = max(0, min(len(buffer), self._size - self._place))
        content = self._read(self._place, n_bytes)
        buffer[:n_bytes] = content
        self._place += n_bytes
        return n_bytes

    def _read(self, place: int, n_bytes: int) -> bytes:
        if n_bytes >= _BLOCK:
            return self._range(place, n_bytes)
        first, last = place // _BLOCK, (place + max(n_bytes, 1) - 1) // _BLOCK
        content = b"".join(self._block(number) for number in range(first, last + 1)) if n_bytes else b""
        return content[place - first * _BLOCK :][:n_bytes]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            place = number * _BLOCK
            self._blocks[number] = self._range(place, min(_BLOCK, self._size - place))
            if len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _range(self, place: int, n_bytes: int) -> bytes:
        content = bytes(patiently(lambda: self._file.read_at(n_bytes, place), self._path))
        if len(content) != n_bytes:
            raise OSError(f"{self._path} ended after {place + len(content):,} of {self._size:,} bytes")
        return content
