"""What the report of a mapping says first: the answer, what speaks for and against it, and the composition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scgpt_ray.evaluation.report.picture import Picture


@dataclass(frozen=True)
class LabelShare:
    """Query cells with one label."""

    label: str
    cells: int
    share: float
    """Of all query cells."""
    confidence: float | None
    """Mean over the cells; None for Unknown."""
    far: float | None
    """Share of the cells that are farther from reference cells than the reference's own; None if not compared."""
    markers: str
    """Whether the cells express the markers of the label; empty if unknown."""
    by_sample: tuple[float, ...]
    """Share of the cells of each sample."""


@dataclass(frozen=True, eq=False)
class ColumnFindings:
    """The labels of one column."""

    column: str
    confidence: str
    """What its confidence means."""
    composition: Sequence[LabelShare]
    """Most frequent first."""
    markers: Picture | str
    """Their expression, or why it is not known."""


@dataclass(frozen=True, eq=False)
class Findings:
    """The answer of a mapping."""

    sentence: str
    """Cells, labels, share uncertain, share flagged."""
    warnings: Sequence[str]
    """What a reader must know before the labels are used."""
    expected: Mapping[str, str]
    """Label column -> how right its labels will be, as far as the reference shows."""
    samples: Sequence[str]
    """Samples of the query, if it has a few."""
    columns: Sequence[ColumnFindings]
    """The first is the one that the sentence is of."""
    placement: str
    """Where the query lies; empty if unknown, or among the warnings."""
