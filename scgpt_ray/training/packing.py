"""From tokens to microbatches: which genes of a cell are shown in a step, and the values of which are predicted.

    T  tokens of a microbatch     C  its cells     M  tokens whose values are predicted

Each cell has a random generator keyed by the seed, the step and the position of the cell in the step. The draws
therefore do not depend on the number of workers, or on whether a step was repeated after a failure. The tokens of a
cell are in random order, those whose values are predicted last.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.training.attention import KnownTokens

MASK_VALUE = -1.0
"""Value of a masked gene, as upstream's; an unknown gene has none."""

_CELLS_PER_STEP = 2**32
"""More cells than a step has, so that the keys of two steps differ."""


@dataclass(frozen=True)
class CellTokens:
    """The tokens of a cell, with its label and domain.

    Args:
        gene: Tokens, <cls> first.
        bin: Bins of the tokens.
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
    """Distributions of the number of genes shown and of the share of them that is predicted.

    Args:
        shortest: Minimum number of tokens that a cell is cut to, including <cls>; shorter cells are not cut.
        longest: Maximum number of tokens of a cell, including <cls>. Lengths are uniform on a logarithmic scale.
        mask_ratios: Shares of the genes to predict, rounded down to genes; one is drawn for each cell. Empty for none.
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
        masked_M: Positions of the tokens whose values are predicted, int64.
        cell_of_masked_M: Cell of each of these, int64.
        bin_M: Bin of each of these, float32.
        place_C: Position of the cell in the step, int64.
        atlas_C: Number of the atlas, int64.
        label_C: Code of the cell type, int64.
        domain_C: Code of the domain, int64.
        known: The other tokens, if those to predict are unknown to the others; None if they are merely masked.
    """

    gene_T: Tensor
    value_T: Tensor
    cells: Spans
    masked_M: Tensor
    cell_of_masked_M: Tensor
    bin_M: Tensor
    place_C: Tensor
    atlas_C: Tensor
    label_C: Tensor
    domain_C: Tensor
    known: KnownTokens | None


@dataclass(frozen=True)
class _Drawn:
    """The genes of a cell that a step shows; the first `n_known` tokens show their values."""

    place: int
    cell: CellTokens
    kept: npt.NDArray[np.int64]
    n_known: int


def microbatches(
    cells: Sequence[tuple[int, CellTokens]],
    step: int,
    draws: Draws,
    tokens_per_microbatch: int,
    *,
    pad_value: float,
    generative: bool = False,
    device: torch.device,
) -> Iterator[Microbatch]:
    """Draw the genes of a worker's cells to show and to predict, and pack the cells.

    Args:
        cells: Pairs of the position in the step and the cell.
        step: Number of the step, for the draws.
        draws: Distributions of the draws.
        tokens_per_microbatch: Maximum number of tokens of a microbatch; a single cell may have more.
        pad_value: Value of <cls>.
        generative: Whether genes to predict are unknown to the others, instead of masked.
        device: Device of the tensors.
    """
    # Sorted by shape: a run of cells of equal shape is one call of attention.
    drawn = sorted(
        (_draw(cell, place, step, draws) for place, cell in cells), key=lambda one: (-len(one.kept), one.n_known)
    )
    pack = partial(_pack, pad_value=pad_value, generative=generative, device=device)
    group: list[_Drawn] = []
    n_tokens = 0
    for one in drawn:
        if group and n_tokens + len(one.kept) > tokens_per_microbatch:
            yield pack(group)
            group, n_tokens = [], 0
        group.append(one)
        n_tokens += len(one.kept)
    if group:
        yield pack(group)


def _draw(cell: CellTokens, place: int, step: int, draws: Draws) -> _Drawn:
    random = np.random.Generator(np.random.Philox(key=[draws.seed, step * _CELLS_PER_STEP + place]))
    n_genes = len(cell.gene) - 1
    length = math.exp(random.uniform(math.log(draws.shortest), math.log(draws.longest)))
    shown = min(n_genes, round(length) - 1)
    ratio = draws.mask_ratios[random.integers(len(draws.mask_ratios))] if draws.mask_ratios else 0.0
    order = random.permutation(n_genes)[:shown]
    # The order is random, so that the last genes are a random choice.
    return _Drawn(place, cell, np.concatenate([[0], order + 1]), 1 + shown - int(ratio * shown))


def _pack(group: Sequence[_Drawn], *, pad_value: float, generative: bool, device: torch.device) -> Microbatch:
    gene_T = np.concatenate([one.cell.gene[one.kept] for one in group]).astype(np.int64)
    bin_T = np.concatenate([one.cell.bin[one.kept] for one in group]).astype(np.float32)
    masked_T = np.concatenate([np.arange(len(one.kept)) >= one.n_known for one in group])
    offsets = np.concatenate([[0], np.cumsum([len(one.kept) for one in group])]).astype(np.int64)
    masked_M = np.flatnonzero(masked_T)
    value_T = np.where(masked_T, np.float32(MASK_VALUE), bin_T)
    value_T[offsets[:-1]] = pad_value
    host = {
        "gene_T": gene_T,
        "value_T": value_T,
        "masked_M": masked_M,
        "cell_of_masked_M": np.searchsorted(offsets, masked_M, side="right") - 1,
        "bin_M": bin_T[masked_M],
        "place_C": np.array([one.place for one in group], np.int64),
        "atlas_C": np.array([one.cell.atlas for one in group], np.int64),
        "label_C": np.array([one.cell.label for one in group], np.int64),
        "domain_C": np.array([one.cell.domain for one in group], np.int64),
    }
    moved = {name: torch.from_numpy(values).to(device, non_blocking=True) for name, values in host.items()}
    cells = Spans.of(offsets, device)
    known = KnownTokens.of([one.n_known for one in group], cells) if generative else None
    return Microbatch(cells=cells, known=known, **moved)
