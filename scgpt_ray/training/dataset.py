"""The cells of a training run: which of them make up a step, and their tokens.

Each epoch goes through all cells, in an order fixed by the seed and the number of the epoch: files in random order are
joined to windows of many cells, which are shuffled. The cells of a step follow from its number alone, so that any
worker, including a restarted one, finds its share without a record of earlier steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.parts.token_file import TokenPart, read_tokens
from scgpt_ray.schema import BIN, GENE, Int64Array, known_texts, ragged
from scgpt_ray.storage import Folder
from scgpt_ray.training.objective import UNLABELLED
from scgpt_ray.training.packing import CellTokens

WINDOW = 65_536
"""Number of cells that are shuffled together: about 400 MB of tokens at 2,000 genes per cell."""

_WINDOWS_HELD = 2
_RARITY = -0.5


@dataclass(frozen=True)
class AtlasTokens:
    """The token files of one atlas.

    Args:
        parts: Footers, with the counts of the training cells that are used.
        left_out: Number of a partition -> rows of its training cells that are not used.
    """

    folder: Folder
    parts: tuple[TokenPart, ...]
    left_out: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def n_left_out(self) -> int:
        """Number of training cells that are not used."""
        return sum(map(len, self.left_out.values()))


@dataclass(frozen=True, eq=False)
class Cells:
    """All training cells, or all validation cells.

    Args:
        atlases: Token files, in the order of the numbers of the atlases.
        validation: Whether these are the validation cells.
        labels: All labels, in the order of their codes.
        domains: All domains, in the order of their codes.
    """

    atlases: tuple[AtlasTokens, ...]
    validation: bool
    labels: tuple[str, ...]
    domains: tuple[str, ...]
    label_column: str | None
    domain_column: str | None
    seed: int
    window: int = WINDOW
    _held: dict[tuple[int, int], list[CellTokens]] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Number of cells."""
        return sum(self._sizes)

    def of_step(self, step: int, cells_per_step: int, rank: int, workers: int) -> list[tuple[int, CellTokens]]:
        """Cells of a step for one worker: every `workers`-th, starting at `rank`.

        Cells left at the end of an epoch, too few for a step, are not used in that epoch.

        Returns:
            Pairs of the position in the step and the cell.
        """
        steps_per_epoch = self.n // cells_per_step
        assert steps_per_epoch > 0, "a step has no more cells than there are"
        epoch, first = step // steps_per_epoch, step % steps_per_epoch * cells_per_step
        return [(place, self._cell(epoch, first + place)) for place in range(rank, cells_per_step, workers)]

    @cached_property
    def type_weights(self) -> npt.NDArray[np.float32]:
        """Weight of a cell by its label, float32 [atlases, labels]; 0 for labels that an atlas lacks.

        In each atlas the weight is proportional to n ** -0.5 for a label of n cells, with mean 1 over the labelled
        cells: between equal weights of cells, which underfits rare types, and equal weights of types, which overfits
        their few cells.
        """
        weights = np.zeros((len(self.atlases), len(self.labels)), np.float32)
        for number, atlas in enumerate(self.atlases):
            n_K = np.array([sum(part.labels.get(label, 0) for part in atlas.parts) for label in self.labels], float)
            raw_K = np.where(n_K > 0, np.maximum(n_K, 1) ** _RARITY, 0)
            weights[number] = raw_K * n_K.sum() / max((raw_K * n_K).sum(), 1)
        return weights

    @cached_property
    def _files(self) -> list[tuple[int, Folder, TokenPart]]:
        """Number of the atlas, folder and footer of each file."""
        return [(number, atlas.folder, part) for number, atlas in enumerate(self.atlases) for part in atlas.parts]

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(part.n_validation if self.validation else part.n_train for _, _, part in self._files)

    def _cell(self, epoch: int, position: int) -> CellTokens:
        order, ends = _file_order(self._sizes, self.seed, epoch, self.window)
        window = int(np.searchsorted(ends, position, side="right"))
        start = int(ends[window - 1]) if window else 0
        return self._window(epoch, window, order[window])[position - start]

    def _window(self, epoch: int, number: int, files: Sequence[int]) -> list[CellTokens]:
        held = self._held.get((epoch, number))
        if held is None:
            while len(self._held) >= _WINDOWS_HELD:
                del self._held[next(iter(self._held))]
            cells = [cell for file in files if self._sizes[file] for cell in self._read(file)]
            random = np.random.default_rng([self.seed, epoch, number])
            held = self._held[epoch, number] = [cells[place] for place in random.permutation(len(cells))]
        return held

    def _read(self, file: int) -> list[CellTokens]:
        number, folder, part = self._files[file]
        tokens = read_tokens(folder, part, validation=self.validation)
        left_out = () if self.validation else self.atlases[number].left_out.get(part.partition, ())
        if left_out:
            tokens = tokens.take(np.delete(np.arange(tokens.num_rows), left_out))
        offsets, genes = ragged(tokens[GENE])
        _, bins = ragged(tokens[BIN])
        label_N = _codes(tokens, self.label_column, self.labels)
        # A validation cell may have a label that no training cell of its atlas has: it counts as unlabelled.
        label_N[np.append(self.type_weights[number] == 0, False)[label_N]] = UNLABELLED
        domain_N = _codes(tokens, self.domain_column, self.domains)
        return [
            CellTokens(genes[start:stop], bins[start:stop], number, int(label_N[row]), int(domain_N[row]))
            for row, (start, stop) in enumerate(pairwise(offsets.tolist()))
        ]


@lru_cache(maxsize=4)
def _file_order(sizes: tuple[int, ...], seed: int, epoch: int, window: int) -> tuple[list[list[int]], Int64Array]:
    """Files of each window of an epoch, and the end position of each window."""
    order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
    windows: list[list[int]] = []
    ends: list[int] = []
    total = 0
    for file in order.tolist():
        if not windows or total - (ends[-2] if len(ends) > 1 else 0) >= window:
            windows.append([])
            ends.append(total)
        windows[-1].append(file)
        total += sizes[file]
        ends[-1] = total
    return windows, np.array(ends, np.int64)


def _codes(tokens: pa.Table, column: str | None, values: tuple[str, ...]) -> npt.NDArray[np.int64]:
    if column is None:
        return np.full(tokens.num_rows, UNLABELLED)
    codes = pc.index_in(known_texts(tokens[column]), value_set=pa.array(values, pa.string()))
    return np.asarray(codes.fill_null(UNLABELLED).to_numpy(), np.int64)
