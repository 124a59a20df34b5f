"""The figures of a data set with new cells, against the thresholds.

A data set that was there before is compared with its own earlier cells. A new one is compared with the earlier cells of
all others, and with how far each of these lies from the rest: data sets differ, and only more than that is drift.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scgpt_ray.evaluation.drift.measures import Cells, Figure, genes_change, mean_shift, purity_fall, share_rise
from scgpt_ray.evaluation.drift.thresholds import Thresholds
from scgpt_ray.records import Check


@dataclass(frozen=True)
class Tally:
    """Numbers of cells.

    Attributes:
        cells: All.
        empty: Those without an embedding.
        cut: Those with more genes than tokens, which are sampled.
    """

    cells: int
    empty: int
    cut: int


@dataclass(frozen=True, eq=False)
class Drift:
    """A data set with new cells.

    Attributes:
        dataset: Its name.
        new: A sample of its new cells.
        earlier: A sample of the earlier cells, of this and other data sets.
        tally: Of all its new cells.
        tally_earlier: Of all earlier cells that it is compared with.
        is_known: Whether it had enough earlier cells to be compared with these.
        limits: Thresholds.
    """

    dataset: str
    new: Cells
    earlier: Cells
    tally: Tally
    tally_earlier: Tally
    is_known: bool
    limits: Thresholds

    def checks(self) -> Iterator[Check]:
        """All figures but coverage."""
        new, earlier = self.tally, self.tally_earlier
        against = f"against {'its' if self.is_known else 'all'} earlier cells"
        if new.cells < self.limits.least_cells:
            yield self._check("empty_rise", None, f"fewer than {self.limits.least_cells} new cells")
            return
        empty = share_rise((new.empty, new.cells), (earlier.empty, earlier.cells))
        yield self._check("empty_rise", empty, against)
        if self.is_known:
            yield self._check("cut_change", share_rise((new.cut, new.cells), (earlier.cut, earlier.cells)), against)
        yield from self._known() if self.is_known else self._unknown()

    def _known(self) -> Iterator[Check]:
        least = self.limits.least_cells
        own = self.earlier[self.earlier.dataset_N == self.dataset]
        against = "against its earlier cells of the same labels"
        yield self._check("genes_change", genes_change(self.new, own, least), against)
        yield self._check("mean_shift", mean_shift(self.new, own, least), against)
        yield self._check("purity_fall", purity_fall(self.new, own, self.earlier, least), against)

    def _unknown(self) -> Iterator[Check]:
        least = self.limits.least_cells
        shift = mean_shift(self.new, self.earlier, least)
        others = [mean_shift(one, rest, least) for one, rest in self._each_apart()]
        natural = max((other.value for other in others if other is not None), default=0.0)
        if shift is None or not natural:
            yield self._check("dataset_shift", None, "fewer than two earlier data sets with labels of this one")
        else:
            ratio = Figure(shift.value / natural, shift.margin / natural, shift.n_new, shift.n_earlier)
            yield self._check("dataset_shift", ratio, "in units of the farthest earlier data set from the others")
        apart = len(np.unique(self.earlier.dataset_N)) > 1
        fall = purity_fall(self.new, self.earlier, self.earlier, least, apart=apart)
        neighbours = "neighbours of other data sets" if apart else "neighbours of its only data set"
        yield self._check("dataset_purity_fall", fall, f"against earlier cells of the same labels, with {neighbours}")

    def _each_apart(self) -> Iterator[tuple[Cells, Cells]]:
        """Each earlier data set and the rest, of labels that the new one has."""
        shared = self.earlier[np.isin(self.earlier.label_N, self.new.label_N)]
        for name in np.unique(shared.dataset_N):
            is_here_N = shared.dataset_N == name
            yield shared[is_here_N], shared[~is_here_N]

    def _check(self, name: str, figure: Figure | None, note: str) -> Check:
        limit = getattr(self.limits, name)
        if figure is None:
            return Check(name, self.dataset, None, 0.0, limit, self.tally.cells, self.tally_earlier.cells, note)
        return Check(name, self.dataset, figure.value, figure.margin, limit, figure.n_new, figure.n_earlier, note)
