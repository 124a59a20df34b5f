"""The embedder that an actor holds: TOKENS in, EMBEDDINGS out."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from scgpt_ray.errors import ConfigError, WorkerError
from scgpt_ray.model.encoder import Encoder
from scgpt_ray.schema import (
    BIN,
    EMBEDDING,
    GENE,
    JOINID,
    N_GENES,
    Int64Array,
    matrix_array,
    obs_columns,
    ragged,
)

if TYPE_CHECKING:
    from scgpt_ray.model.checkpoint import Checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

TOKENS_PER_MICROBATCH = {"cpu": 8_192, "cuda": 65_536}
"""Tokens of one forward pass by device: activations that stay in a CPU's cache, or that fill a GPU."""


def set_threads(n: int) -> None:
    """Let this process compute on n cores; Ray's default for an actor is one."""
    torch.set_num_threads(n)


def has_gpu() -> bool:
    """Whether torch sees a CUDA GPU on this machine."""
    return torch.cuda.is_available()


class Embedder:
    """A network on a device, fed with microbatches of as many whole cells as fit into a budget of tokens.

    Args:
        checkpoint: Weights.
        device: "cpu", "cuda" or "cuda:N".
        precision: "float32" or "bfloat16", of linear layers and attention.
        tokens_per_microbatch: Budget; a cell with more tokens goes alone. None for what suits the device. It
            is halved for good whenever GPU memory does not suffice.

    Raises:
        ConfigError: If the machine has no such device.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint",
        *,
        device: str = "cpu",
        precision: str = "float32",
        tokens_per_microbatch: int | None = None,
    ) -> None:
        place = torch.device(device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"the device {device} was asked for, but torch sees no GPU",
                expected="a CUDA GPU and a torch built for it",
                remedy="use the device cpu, or a machine with a GPU",
            )
        self._place, self._precision = place, precision
        self._budget = tokens_per_microbatch or TOKENS_PER_MICROBATCH[place.type]
        self._encoder = Encoder(checkpoint.architecture, checkpoint.tensors, device=place, dtype=DTYPES[precision])

    def describe(self) -> dict[str, str | int]:
        """What this embedder computes with: device, precision, attention and token budget."""
        return {
            "device": str(self._place),
            "precision": self._precision,
            "attention": self._encoder.attention.name,
            "tokens_per_microbatch": self._budget,
        }

    def __call__(self, tokens: pa.Table) -> pa.Table:
        """Embed TOKENS.

        Returns:
            EMBEDDINGS, row for row: unit vectors, null for a cell without tokens.

        Raises:
            WorkerError: If a cell alone does not fit into the memory, or an embedding is not finite.
        """
        offsets, gene = ragged(tokens[GENE])
        _, bins = ragged(tokens[BIN])
        absent = np.diff(offsets) == 0
        joinids = tokens[JOINID].to_numpy()
        embedding = np.zeros((len(tokens), self._encoder.width), np.float32)
        # An empty cell takes no room in the flat arrays: without it, the boundaries of the others are these.
        starts = np.append(offsets[:-1][~absent], offsets[-1])
        embedding[~absent] = self._embed(gene, bins, starts, joinids[~absent])
        finite = np.isfinite(embedding).all(axis=1)
        if not finite.all():
            raise WorkerError(f"the embedding of cell {joinids[~finite][0]} is not finite ({self.describe()})")
        columns = tokens.select([JOINID, *obs_columns(tokens), N_GENES])
        return columns.append_column(EMBEDDING, matrix_array(embedding, absent))

    def _embed(
        self,
        gene: npt.NDArray[np.generic],
        bins: npt.NDArray[np.generic],
        offsets: Int64Array,
        joinids: Int64Array,
    ) -> npt.NDArray[np.float32]:
        """Embed cells that have tokens, by microbatches; the device is waited for only at the end."""
        parts = [torch.empty(0, self._encoder.width, device=self._place)]
        start = 0
        while start < len(joinids):
            stop = microbatch_end(offsets, start, self._budget)
            part = self._attempt(gene, bins, offsets[start : stop + 1])
            if part is None:
                if stop - start == 1:
                    raise WorkerError(f"cell {joinids[start]} alone does not fit into the memory of {self._place}")
                self._budget //= 2
                torch.cuda.empty_cache()
                continue
            parts.append(part)
            start = stop
        return torch.cat(parts).cpu().numpy()

    def _attempt(
        self, gene: npt.NDArray[np.generic], bins: npt.NDArray[np.generic], offsets: Int64Array
    ) -> Tensor | None:
        """Embed one microbatch; None if it does not fit into the device's memory."""
        span = slice(offsets[0], offsets[-1])
        try:
            return self._encoder(self._send(gene[span]), self._send(bins[span]), offsets - offsets[0])
        except torch.cuda.OutOfMemoryError:
            return None

    def _send(self, values: npt.NDArray[np.generic]) -> Tensor:
        """Copy values to the device as narrow as they are: three bytes a token."""
        host = torch.from_numpy(values.copy())  # Arrow's memory is read-only
        return host.pin_memory().to(self._place, non_blocking=True) if self._place.type == "cuda" else host


def microbatch_end(offsets: Int64Array, start: int, budget: int) -> int:
    """End of the microbatch that begins with cell `start`: what fits into the budget, at least one cell."""
    return max(start + 1, int(np.searchsorted(offsets, offsets[start] + budget, side="right")) - 1)
