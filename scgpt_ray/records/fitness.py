"""The record of how fit a reference's embeddings are to label new cells."""

import math
from dataclasses import dataclass
from typing import Literal

from scgpt_ray.records.record import Count, Fraction, Record, Size

RANDOM_FIFTHS = "random fifths"
"""What is held out where no column separates samples."""

Verdict = Literal["fit", "behind", "unfit"]

_HALF = 0.5
"""Share of what PCA + kNN gains over the most frequent label, below which an embedding is called unfit, and not only
behind: counts alone tell the labels apart twice as well."""


@dataclass(frozen=True)
class Agreement:
    """How often a method gives the examined cells their own label."""

    accuracy: Fraction
    macro_f1: Fraction
    right_alone: Count
    """Cells that it labels right and the embedding wrong."""
    wrong_alone: Count
    """Cells that it labels wrong and the embedding right."""

    @property
    def is_ahead(self) -> bool:
        """Whether it is right more often than the embedding, by two standard errors of the paired difference."""
        differ = self.right_alone + self.wrong_alone
        return self.right_alone - self.wrong_alone > 2 * math.sqrt(differ)


@dataclass(frozen=True)
class LabelFitness:
    """A label column, of cells that were mapped without those of their own group."""

    cells: Size
    """Cells that were examined."""
    labels: Size
    """Labels of the reference."""
    held_out: str
    """Column whose groups were held out in turn, or `RANDOM_FIFTHS`."""
    one_group: Fraction
    """Share of the reference cells whose label one group alone has, so that they count as wrong."""
    accuracy: Fraction
    macro_f1: Fraction
    majority: Agreement
    """Of always giving the most frequent label."""
    baseline: Agreement | None
    """Of PCA + kNN; None if the counts were not read."""
    baseline_cells: str
    """What PCA + kNN was made from, or why it is missing."""

    @property
    def verdict(self) -> Verdict:
        """`unfit` if the most frequent label is right more often, or PCA + kNN gains twice as much over it."""
        lead, other = self.accuracy - self.majority.accuracy, self.baseline
        if lead < 0:
            return "unfit"
        if other is None or not other.is_ahead:
            return "fit"
        return "unfit" if lead < _HALF * (other.accuracy - self.majority.accuracy) else "behind"

    def text(self) -> str:
        """What to expect on new cells, as a sentence for a person."""
        said = {
            "unfit": "this checkpoint does not tell these labels apart",
            "behind": "PCA + kNN tells these labels apart better",
            "fit": "no baseline is clearly better" if self.baseline else "better than the most frequent label",
        }
        others = f"always the most frequent label: {self.majority.accuracy:.2f}"
        if self.baseline:
            others = f"PCA + kNN: {self.baseline.accuracy:.2f}; {others}"
        else:
            others += f"; PCA + kNN is left out, {self.baseline_cells}"
        return (
            f"expected on new cells: accuracy {self.accuracy:.2f}, macro-F1 {self.macro_f1:.2f}; {others}: "
            f"{said[self.verdict]} ({self._how()})"
        )

    def _how(self) -> str:
        if self.held_out == RANDOM_FIFTHS:
            how = f"{self.cells:,} reference cells, {RANDOM_FIFTHS} held out, so that a new batch may do worse"
        else:
            how = f"{self.cells:,} reference cells, each without the cells of its {self.held_out}"
        if self.one_group:
            how += f"; {self.one_group:.0%} have a label of one {self.held_out} alone"
        return how


@dataclass(frozen=True)
class NeighborDistances:
    """Cosine distances from reference cells to their neighbours in other groups."""

    held_out: str
    """As `LabelFitness.held_out`."""
    median: tuple[float, ...]
    """Distance to the first neighbour, the second, and so on."""
    far: tuple[float, ...]
    """Distance that one reference cell in a hundred exceeds, likewise."""


class Fitness(Record):
    """What is known of a reference before anything is mapped onto it."""

    file = "fitness.json"
    remedy = "build the index again"

    columns: dict[str, LabelFitness | str]
    """Label-like column -> its fitness, or why it was not examined. `map` transfers these by default."""
    distances: NeighborDistances
    calibrate_by: str | None
    """Column by which labels can be calibrated; None if no column has three groups that share their labels."""
