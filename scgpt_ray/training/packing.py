"""From tokens to microbatches: which of a cell's genes a step shows the network, and which of those it masks.

    T  tokens of a microbatch     C  its cells     M  masked tokens

All that is drawn for a cell comes from a generator of its own, keyed by the seed, the step and the cell's place in the
step. So it does not matter how many workers share a step, nor whether one of them was killed and the step repeated.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scgpt_ray.network.cell_spans import Spans

_CELLS_PER_STEP = 2**32
"""More than a step has: keeps the keys of two steps apart."""


@dataclass(frozen=True)
class CellTokens:
    """A cell of the training set.

    Args:
        gene: Tokens, <cls> first.
        bin: Their bins.
        atlas: Number of the atlas it comes from.
        label: Code of its type; -1 for none.
        domain: Code of its domain; -1 for none.
    """

    gene: npt.NDArray[np.generic]
    bin: npt.NDArray[np.generic]
    atlas: int
    label: int
    domain: int


@dataclass(frozen=True)
class Draws:
    """What may be drawn for a cell.

    Args:
        shortest: Fewest tokens a cell is cut to, <cls> included; a cell that has fewer keeps all.
        longest: Most tokens of a cell, <cls> included. Lengths are uniform on a logarithmic scale between the two.
        mask_ratios: One of these parts of the genes is masked; without any, none is.
        seed: Of all draws.
    """

    shortest: int
    longest: int
    mask_ratios: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Microbatch:
    """Packed cells, as tensors of one device.

    Args:
        gene_T: Tokens, int64.
        value_T: What the network sees in place of a count, float32.
        cells: Where the cells begin.
        masked_M: Places of the masked tokens, int64.
        cell_of_masked_M: The cell each belongs to, int64.
        bin_M: Their bins, float32.
        atlas_C: Numbers of the atlases, int64.
        label_C: Codes of the types, int64.
        domain_C: Codes of the domains, int64.
    """

    gene_T: Tensor
    value_T: Tensor
    cells: Spans
    masked_M: Tensor
    cell_of_masked_M: Tensor
    bin_M: Tensor
    atlas_C: Tensor
    label_C: Tensor
    domain_C: Tensor


@dataclass(frozen=True)
class _Drawn:
    """What a step shows of a cell."""

    cell: CellTokens
    kept: npt.NDArray[np.int64]
    masked: npt.NDArray[np.bool_]


def microbatches(
    cells: Sequence[tuple[int, CellTokens]],
    step: int,
    draws: Draws,
    tokens_per_microbatch: int,
    *,
    pad_value: float,
    mask_value: float,
    device: torch.device,
) -> Iterator[Microbatch]:
    """Draw and pack a worker's cells of a step.

    Args:
        cells: Pairs of the place in the step and the cell.
        step: Number of the step, for the draws.
        draws: What may be drawn.
        tokens_per_microbatch: Most tokens of a microbatch; a single cell may have more.
        pad_value: The value of <cls>.
        mask_value: The value of a masked gene.
        device: Where the tensors go.
    """
    # By length: a run of cells of one length is one call of attention.
    drawn = sorted((_draw(cell, place, step, draws) for place, cell in cells), key=lambda drawn: -len(drawn.kept))
    group: list[_Drawn] = []
    n_tokens = 0
    for one in drawn:
        if group and n_tokens + len(one.kept) > tokens_per_microbatch:
            yield _pack(group, pad_value, mask_value, device)
            group, n_tokens = [], 0
        group.append(one)
        n_tokens += len(one.kept)
    if group:
        yield _pack(group, pad_value, mask_value, device)


def _draw(cell: CellTokens, place: int, step: int, draws: Draws) -> _Drawn:
    random = np.random.Generator(np.random.Philox(key=[draws.seed, step * _CELLS_PER_STEP + place]))
    n_genes = len(cell.gene) - 1
    length = math.exp(random.uniform(math.log(draws.shortest), math.log(draws.longest)))
    shown = min(n_genes, round(length) - 1)
    ratio = draws.mask_ratios[random.integers(len(draws.mask_ratios))] if draws.mask_ratios else 0.0
    order = random.permutation(n_genes)[:shown]
    # The order is random already: its beginning is a random choice.
    masked = np.concatenate([[False], np.arange(shown) < round(ratio * shown)])
    return _Drawn(cell, np.concatenate([[0], order + 1]), masked)


def _pack(group: Sequence[_Drawn], pad_value: float, mask_value: float, device: torch.device) -> Microbatch:
    gene_T = np.concatenate([one.cell.gene[one.kept] for one in group]).astype(np.int64)
    bin_T = np.concatenate([one.cell.bin[one.kept] for one in group]).astype(np.float32)
    masked_T = np.concatenate([one.masked for one in group])
    offsets = np.concatenate([[0], np.cumsum([len(one.kept) for one in group])]).astype(np.int64)
    masked_M = np.flatnonzero(masked_T)
    value_T = np.where(masked_T, np.float32(mask_value), bin_T)
    value_T[offsets[:-1]] = pad_value
    host = {
        "gene_T": gene_T,
        "value_T": value_T,
        "masked_M": masked_M,
        "cell_of_masked_M": np.searchsorted(offsets, masked_M, side="right") - 1,
        "bin_M": bin_T[masked_M],
        "atlas_C": np.array([one.cell.atlas for one in group], np.int64),
        "label_C": np.array([one.cell.label for one in group], np.int64),
        "domain_C": np.array([one.cell.domain for one in group], np.int64),
    }
    moved = {name: torch.from_numpy(values).to(device, non_blocking=True) for name, values in host.items()}
    return Microbatch(cells=Spans.of(offsets, device), **moved)
