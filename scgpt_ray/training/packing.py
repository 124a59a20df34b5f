"""From tokens to microbatches: which genes of a cell are shown in a step, and which of these are masked.

    T  tokens of a microbatch     C  its cells     M  masked tokens

Each cell has a random generator keyed by the seed, the step and the position of the cell in the step. The draws
therefore do not depend on the number of workers, or on whether a step was repeated after a failure.
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
"""More cells than a step has, so that the keys of two steps differ."""


@dataclass(frozen=True)
class CellTokens:
    """The tokens of a cell, with its label and domain.

    Args:
        gene: Tokens, <cls> first.
        bin: Bins of the tokens.
        atlas: Number of the atlas.
        label: Code of the cell type; -1 if unknown.
        domain: Code of the domain; -1 if unknown.
    """

    gene: npt.NDArray[np.generic]
    bin: npt.NDArray[np.generic]
    atlas: int
    label: int
    domain: int


@dataclass(frozen=True)
class Draws:
    """Distributions of the number of genes shown and of the share of them that is masked.

    Args:
        shortest: Minimum number of tokens that a cell is cut to, including <cls>; shorter cells are not cut.
        longest: Maximum number of tokens of a cell, including <cls>. Lengths are uniform on a logarithmic scale.
        mask_ratios: Shares of the genes to mask, one of which is drawn; empty for no masking.
        seed: Seed of all draws.
    """

    shortest: int
    longest: int
    mask_ratios: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Microbatch:
    """Packed cells, as tensors on one device.

    Args:
        gene_T: Tokens, int64.
        value_T: Values: a bin, the pad value (of <cls>) or the mask value, float32.
        cells: Boundaries of the cells.
        masked_M: Positions of the masked tokens, int64.
        cell_of_masked_M: Cell of each masked token, int64.
        bin_M: Bin of each masked token, float32.
        atlas_C: Number of the atlas, int64.
        label_C: Code of the cell type, int64.
        domain_C: Code of the domain, int64.
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
    """The genes of a cell that a step shows, and which of them are masked."""

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
    """Draw the shown and masked genes of a worker's cells, and pack the cells.

    Args:
        cells: Pairs of the position in the step and the cell.
        step: Number of the step, for the draws.
        draws: Distributions of the draws.
        tokens_per_microbatch: Maximum number of tokens of a microbatch; a single cell may have more.
        pad_value: Value of <cls>.
        mask_value: Value of a masked gene.
        device: Device of the tensors.
    """
    # Sorted by length: a run of cells of equal length is one call of attention.
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
    # The order is random, so that the first genes are a random choice.
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
