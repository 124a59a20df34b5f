"""Shift of a query relative to the reference, measured without labels.

Held-out groups of the reference show how far a new donor or dataset may lie; a query that lies farther is not what the
calibration was measured on.

Shapes: N cells of the calibration sample, G groups, Q cells of the query.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scgpt_ray.mapping.calibration_sample import Sample
from scgpt_ray.mapping.votes import Floats, VoteTally, named

NEARNESS, PROBABILITY = "nearness", "probability"
"""Names of the figures."""

_LEAST_CELLS = 20  # of a group whose mean counts as an end of a range


@dataclass(frozen=True)
class Position:
    """A mean over the query's cells and its range over held-out groups."""

    query: float
    lowest: float
    """Of the held-out group with the lowest mean."""
    highest: float
    beyond: bool = field(init=False)
    """Whether the query lies below the range: farther from the reference, or less sure, than any held-out group."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "beyond", self.query < self.lowest)


@dataclass(frozen=True)
class HeldOutRange:
    """Where held-out groups lie."""

    nearness: Mapping[str, float]
    """Predicted label -> mean nearness of its held-out cells. Types differ in how close their cells lie: cells are
    compared with those of the same predicted label, so that the composition of a query does not matter."""
    nearness_range: tuple[float, float]
    """Lowest and highest mean difference, of a group's cells from the other groups' cells of their predicted label."""
    probability_range: tuple[float, float]
    """Lowest and highest mean calibrated probability of a group's cells."""

    def positions(self, names: tuple[str, ...], tally: VoteTally, probability_Q: Floats) -> dict[str, Position]:
        """Compare a query with the held-out groups.

        Args:
            names: Labels.
            tally: Votes of the query's cells, each without the neighbours of one group, as held-out cells have them.
            probability_Q: float64 [Q], calibrated.

        Returns:
            Name of the figure -> position; without those that no cell of the query has.
        """
        difference = _differences(named(names, tally.top), tally.nearness, self.nearness)
        figures = {
            NEARNESS: (difference, self.nearness_range),
            PROBABILITY: (probability_Q[tally.has_votes], self.probability_range),
        }
        return {name: Position(float(values.mean()), *ends) for name, (values, ends) in figures.items() if len(values)}


def held_out_range(sample: Sample, probability_N: Floats) -> HeldOutRange:
    """Measure where the groups of a calibration sample lie, each compared with the others.

    Args:
        sample: The cells.
        probability_N: float64 [N], calibrated.
    """
    predicted_N, nearness_N = named(sample.names, sample.tally.top), sample.tally.nearness
    codes, cells = np.unique(sample.group, return_counts=True)
    means: list[tuple[float, float]] = []
    for code in codes[cells >= min(_LEAST_CELLS, cells.max())]:
        own = sample.group == code
        others = _means(predicted_N[~own], nearness_N[~own])
        difference = _differences(predicted_N[own], nearness_N[own], others)
        means.append((float(difference.mean()) if len(difference) else 0.0, float(probability_N[own].mean())))
    nearness_G, probability_G = np.array(means).T
    return HeldOutRange(
        _means(predicted_N, nearness_N),
        (float(nearness_G.min()), float(nearness_G.max())),
        (float(probability_G.min()), float(probability_G.max())),
    )


def _means(label_N: npt.NDArray[np.object_], nearness_N: Floats) -> dict[str, float]:
    return {label: float(nearness_N[label_N == label].mean()) for label in sorted(set(label_N))}


def _differences(label_N: npt.NDArray[np.object_], nearness_N: Floats, mean: Mapping[str, float]) -> Floats:
    """Nearness minus the mean of the label; without cells whose label has none."""
    mean_N = np.array([mean.get(label, np.nan) for label in label_N], np.float64)
    return (nearness_N - mean_N)[~np.isnan(mean_N)]
