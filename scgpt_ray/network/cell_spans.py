"""Boundaries of the cells in a packed microbatch, in the forms that attention kernels need."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Spans:
    """Boundaries of cells in packed tokens.

    Args:
        offsets: n_cells + 1 boundaries on the host, starting at 0.
        cu_seqlens: The same as int32 on the device.
    """

    offsets: list[int]
    cu_seqlens: Tensor
    _tiles: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, offsets: npt.NDArray[np.int64], device: torch.device) -> "Spans":
        """Make spans from boundaries that start at 0."""
        return cls(offsets.tolist(), torch.from_numpy(offsets.astype(np.int32)).to(device, non_blocking=True))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest cell."""
        return max((stop - start for start, stop in self), default=0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.offsets[:-1], self.offsets[1:], strict=True)

    def tiles(self, size: int) -> Tensor:
        """Divide the cells into tiles; cached, since all layers use the same tiles.

        Args:
            size: Largest number of tokens of a tile; a tile belongs to one cell.

        Returns:
            int32 [n, 2] on the device: cell, and the tile's first token within it. Tiles of the longest cells come
            first because they take longest: this balances the load.
        """
        if size not in self._tiles:
            lengths = np.diff(self.offsets)
            cells = np.argsort(-lengths, kind="stable")
            n_tiles = -(-lengths[cells] // size)
            rank = np.arange(n_tiles.sum()) - np.repeat(np.cumsum(n_tiles) - n_tiles, n_tiles)
            tiles = np.stack([np.repeat(cells, n_tiles), rank * size], axis=1).astype(np.int32)
            self._tiles[size] = torch.from_numpy(tiles).to(self.cu_seqlens.device, non_blocking=True)
        return self._tiles[size]
