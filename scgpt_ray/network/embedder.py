"""The embedder of an actor: a table of TOKENS in, a table of EMBEDDINGS out."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from scgpt_ray.errors import ConfigError, WorkerError
from scgpt_ray.network.attention import Kind
from scgpt_ray.network.encoder import Encoder, Pooling
from scgpt_ray.network.precision import DTYPES, require_float32, require_precision, resolve_precision
from scgpt_ray.network.transfer import CudaTransfer, HostTransfer, Transfer
from scgpt_ray.schema import BIN, CLS_BIN, GENE, JOINID, Float32Matrix, Int64Array, embedded, ragged

if TYPE_CHECKING:
    from scgpt_ray.network.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

CPU_TOKENS = 8_192
"""Tokens per forward pass on a CPU, so that activations stay in the cache."""

MOST_TOKENS = 131_072
"""Largest number of tokens per forward pass on a GPU; enough to keep all of it busy."""

WARM_UP_TOKENS = 130
"""Tokens of the warm-up cell: more than a tile of any kernel."""

MEMORY_SHARE = 0.5
"""Share of the free GPU memory for activations; the rest is for fragmentation and a second encoder in float32."""


def set_threads(n: int) -> None:
    """Set the number of threads of torch in this process; Ray's default for an actor is one."""
    torch.set_num_threads(n)


def has_gpu() -> bool:
    """Whether torch sees a CUDA GPU on this machine."""
    return torch.cuda.is_available()


def gpus_of_machine() -> int:
    """Number of CUDA GPUs that torch sees on this machine."""
    return torch.cuda.device_count()


class Embedder:
    """A network on a device. It computes microbatches of whole cells, as many as fit into a budget of tokens.

    Thread-safe: one thread at a time computes on the device, while others prepare or finish their cells.

    Construction includes a warm-up cell, so that libraries are loaded and kernels compiled and tested before the first
    call.

    Args:
        checkpoint: Weights.
        device: "cpu", "cuda" or "cuda:N".
        precision: Arithmetic of linear layers and attention: "float32", "bfloat16" or "float16"; "auto" is float16 on
            CUDA and float32 on a CPU. A cell in which float16 overflows is recomputed in float32.
        tokens_per_microbatch: Token budget; a longer cell is computed alone. None for the default of the device. The
            budget is halved permanently whenever GPU memory runs out.
        attention: Implementation of attention; see `choose_attention`.
        device_share: Fraction of the device's memory for this embedder, if several processes share it.
        pooling: What becomes the embedding of a cell.

    Raises:
        ConfigError: If the machine has no such device, or the device lacks the precision or the attention.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint",
        *,
        device: str = "cpu",
        precision: str = "auto",
        tokens_per_microbatch: int | None = None,
        attention: Kind = "auto",
        device_share: float = 1.0,
        pooling: Pooling = "cls",
    ) -> None:
        place = torch.device(device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"the device {device} was asked for, but torch sees no GPU",
                expected="a CUDA GPU and a torch built for it",
                remedy="use the device cpu, or a machine with a GPU",
            )
        self._place, self._pooling, self._precision = place, pooling, resolve_precision(precision, device)
        require_precision(device, self._precision)
        if place.type == "cuda":
            require_float32(place)
        self._encoder = make_encoder(checkpoint, place, DTYPES[self._precision], attention, pooling)
        self._checkpoint = checkpoint if self._precision == "float16" else None  # for overflowed cells
        self._transfer: Transfer = CudaTransfer(place) if place.type == "cuda" else HostTransfer()
        share = MEMORY_SHARE * device_share
        self._budget = tokens_per_microbatch or default_budget(place, self._encoder.bytes_per_token, share)
        self._lock = threading.Lock()
        self._overflowed = 0
        report_refused(self.describe())
        self._compute(synthetic_cell(checkpoint.vocabulary.size), exact=False)

    @cached_property
    def _exact_encoder(self) -> Encoder:
        assert self._checkpoint is not None
        return make_encoder(self._checkpoint, self._place, torch.float32, "auto", self._pooling)

    def describe(self) -> dict[str, str | int]:
        """Device, precision, kernels and current counters, for logs and reports.

        Returns:
            `device`, `device_name` (model of the device), `precision`, `attention`, `elementwise`,
            `tokens_per_microbatch`, `cells_overflowed`; and `refused`, with the reason, if a faster kernel does not
            work on this machine.
        """
        described: dict[str, str | int] = {
            "device": str(self._place),
            "device_name": device_name(self._place),
            "precision": self._precision,
            "attention": self._encoder.attention.name,
            "elementwise": self._encoder.elementwise.name,
            "tokens_per_microbatch": self._budget,
            "cells_overflowed": self._overflowed,
        }
        return described | ({"refused": "; ".join(self._encoder.refused)} if self._encoder.refused else {})

    def __call__(self, tokens: pa.Table) -> pa.Table:
        """Embed a table of TOKENS.

        Returns:
            A table of EMBEDDINGS in the same order: unit vectors, null for a cell without tokens. That of a cell with
            several sequences of tokens is their mean, scaled to unit length.

        Raises:
            WorkerError: If a single cell does not fit into memory, or an embedding is not finite.
        """
        offsets, gene = ragged(tokens[GENE])
        _, bins = ragged(tokens[BIN])
        absent = np.diff(offsets) == 0
        starts = np.flatnonzero(bins == CLS_BIN)  # of the sequences, of which an empty cell has none
        firsts = np.searchsorted(starts, offsets[:-1][~absent])
        n_sequences = np.diff(firsts, append=len(starts))
        joinids = np.repeat(tokens[JOINID].to_numpy()[~absent], n_sequences)
        cells = Cells(joinids, np.append(starts, offsets[-1]), gene, bins)
        found = self._compute(cells, exact=False)
        finite = all_finite(found)
        if self._precision == "float16" and not finite.all():
            found[~finite] = self._compute(cells.take(~finite), exact=True)
            self._report_overflow(len(np.unique(cells.joinids[~finite])))
            finite = all_finite(found)
        if not finite.all():
            raise WorkerError(f"the embedding of cell {cells.joinids[~finite][0]} is not finite ({self.describe()})")
        embedding = np.zeros((len(tokens), self._encoder.width), np.float32)
        embedding[~absent] = mean_vectors(found, firsts)
        return embedded(tokens, embedding, absent)

    def _report_overflow(self, n_cells: int) -> None:
        with self._lock:
            self._overflowed += n_cells
        logger.warning("float16 overflowed in %d cells, which were recomputed in float32", n_cells)

    def _compute(self, cells: "Cells", *, exact: bool) -> npt.NDArray[np.float32]:
        """Embed cells in microbatches, in float32 if exact.

        Waiting for the device happens after the lock is released, so that another thread can queue its work meanwhile.
        """
        with self._lock, torch.inference_mode():
            encoder = self._exact_encoder if exact else self._encoder
            parts = [torch.empty(0, encoder.width, device=self._place)]
            start = 0
            while start < len(cells.joinids):
                stop = microbatch_end(cells.offsets, start, self._budget)
                part = self._attempt(encoder, cells, start, stop)
                if part is None:
                    if stop - start == 1:
                        joinid = cells.joinids[start]
                        raise WorkerError(f"cell {joinid} alone does not fit into the memory of {self._place}")
                    self._budget //= 2
                    torch.cuda.empty_cache()
                    continue
                parts.append(part)
                start = stop
            fetch = self._transfer.fetch(torch.cat(parts))
        return fetch()

    def _attempt(self, encoder: Encoder, cells: "Cells", start: int, stop: int) -> Tensor | None:
        """Embed one microbatch; None if the device runs out of memory."""
        offsets = cells.offsets[start : stop + 1]
        span = slice(offsets[0], offsets[-1])
        try:
            gene, bins = self._transfer.send([cells.gene[span], cells.bins[span]])
            return encoder(gene, bins, offsets - offsets[0])
        except torch.cuda.OutOfMemoryError:
            return None


@dataclass(frozen=True)
class Cells:
    """Packed cells without empty ones; one with several sequences of tokens is as many cells.

    Args:
        joinids: [C], for messages.
        offsets: [C + 1], boundaries of the cells in gene and bins, starting at 0.
        gene: [T], gene tokens.
        bins: [T], bin codes.
    """

    joinids: Int64Array
    offsets: Int64Array
    gene: npt.NDArray[np.generic]
    bins: npt.NDArray[np.generic]

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Cells":
        """The chosen cells only."""
        lengths = np.diff(self.offsets)
        of_chosen = np.repeat(chosen, lengths)
        offsets = np.append(0, np.cumsum(lengths[chosen]))
        return Cells(self.joinids[chosen], offsets, self.gene[of_chosen], self.bins[of_chosen])


def report_refused(described: Mapping[str, str | int]) -> None:
    """Warn, once per process, of faster kernels that do not work.

    Args:
        described: Result of `Embedder.describe`, possibly of an actor.
    """
    if "refused" in described:
        _warn_of_refused(*(str(described[key]) for key in ("device_name", "refused", "attention", "elementwise")))


@cache
def _warn_of_refused(*words: str) -> None:
    logger.warning("faster kernels do not work on %s (%s); attention: %s; element-wise operations: %s", *words)


def synthetic_cell(n_tokens: int) -> Cells:
    """A cell of WARM_UP_TOKENS valid tokens, given a vocabulary of n_tokens."""
    gene = np.arange(WARM_UP_TOKENS, dtype=np.int32) % n_tokens
    bins = np.append(np.uint8(0), np.ones(WARM_UP_TOKENS - 1, np.uint8))
    return Cells(np.array([-1]), np.array([0, WARM_UP_TOKENS]), gene, bins)


def device_name(device: torch.device) -> str:
    """The model of a GPU, or the instruction set that torch uses on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()


def make_encoder(
    checkpoint: "Checkpoint", device: torch.device, dtype: torch.dtype, attention: Kind, pooling: Pooling
) -> Encoder:
    """Put the network of a checkpoint on a device."""
    return Encoder(
        checkpoint.architecture, checkpoint.tensors, device=device, dtype=dtype, attention=attention, pooling=pooling
    )


def default_budget(device: torch.device, bytes_per_token: int, share: float = MEMORY_SHARE) -> int:
    """Default token budget of a device; on a GPU, what fits into a share of its free memory, up to MOST_TOKENS."""
    if device.type != "cuda":
        return CPU_TOKENS
    free, _total = torch.cuda.mem_get_info(device)
    return max(1, min(MOST_TOKENS, int(share * free) // bytes_per_token))


def microbatch_end(offsets: Int64Array, start: int, budget: int) -> int:
    """End of the microbatch that begins with cell `start`: as many cells as fit into the budget, at least one."""
    return max(start + 1, int(np.searchsorted(offsets, offsets[start] + budget, side="right")) - 1)


def mean_vectors(rows_SD: Float32Matrix, firsts: Int64Array) -> Float32Matrix:
    """Mean direction of each group of unit vectors; a vector that is alone is unchanged.

    Args:
        rows_SD: Unit vectors, those of a group one after another.
        firsts: [C], row of the first vector of each group, ascending from 0.
    """
    if len(firsts) == len(rows_SD):
        return rows_SD
    mean_CD = np.add.reduceat(rows_SD, firsts, axis=0, dtype=np.float64)
    mean_CD /= np.maximum(np.linalg.norm(mean_CD, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    alone_C = np.diff(firsts, append=len(rows_SD)) == 1
    mean_CD[alone_C] = rows_SD[firsts[alone_C]]
    return mean_CD.astype(np.float32)


def all_finite(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which rows of a matrix hold finite numbers only."""
    return np.asarray(np.isfinite(rows).all(axis=1))
