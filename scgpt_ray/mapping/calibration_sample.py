"""The calibration sample: reference cells whose neighbours come from other groups than their own.

Shapes: N cells of the sample, K neighbours.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.mapping.label_table import NO_CODE, Codes, encoded
from scgpt_ray.mapping.votes import LabelVotes, VoteTally, named
from scgpt_ray.schema import Int64Array, known_texts

LEAST_GROUPS = 3
"""Fewest groups to calibrate with. With two donors of kang_ctrl_12k, 35 % of the others were above a target of 5 %, and
60 % above one of 3 %; with three, 27 and 42 % (README of evaluation)."""
MOST_IN_ONE_GROUP = 0.2
"""Largest share of cells whose label one group alone has. No other group can vote for it, so that they count as wrong,
and probabilities are too low by up to this share."""


@dataclass(frozen=True)
class OneGroupLabels:
    """Labels that one group alone has: their cells are evaluated as wrong, because no other group has the label."""

    cells: Mapping[str, int]
    """Label -> reference cells, most first."""
    share: float
    """Their share of the labelled reference cells."""
    groups: int = 0
    """All groups that have a labelled cell."""
    labelled: int = 0
    """Reference cells with a label and a group."""


def one_group_labels(labels: pa.ChunkedArray, groups: pa.ChunkedArray, cells: Int64Array) -> OneGroupLabels:
    """Find the labels that one group alone has, and require that groups can be calibrated with.

    Args:
        labels: As `count_groups`.
        groups: Likewise.
        cells: Likewise.

    Raises:
        ReferenceSetError: If there are fewer than three groups, or such labels make up too large a share of the cells.
    """
    found = count_groups(labels, groups, cells)
    _require_groups(found.labelled, found.groups)
    if found.share > MOST_IN_ONE_GROUP:
        alone = list(found.cells)
        shown = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")  # noqa: PLR2004
        raise ReferenceSetError(
            f"{found.share:.0%} of {found.labelled:,} labelled cells have a label that one group alone has ({shown})",
            expected=f"at most {MOST_IN_ONE_GROUP:.0%}: other groups cannot show how often such a label is right",
            remedy="calibrate by a column whose groups share their labels, or map without calibration",
        )
    return found


def count_groups(labels: pa.ChunkedArray, groups: pa.ChunkedArray, cells: Int64Array) -> OneGroupLabels:
    """Count groups and the labels that one of them alone has.

    Args:
        labels: str [P], of pairs of a label and a group; null if missing.
        groups: str [P].
        cells: int64 [P], reference cells of each pair, at least 1.
    """
    groups_of: dict[str, set[str]] = {}
    cells_of: Counter[str] = Counter()
    for label, group, n in zip(labels.to_pylist(), groups.to_pylist(), cells.tolist(), strict=True):
        if label is not None and group is not None:
            groups_of.setdefault(label, set()).add(group)
            cells_of[label] += n
    alone = {label: n for label, n in cells_of.most_common() if len(groups_of[label]) == 1}
    n_groups, n_cells = len(set().union(*groups_of.values())), cells_of.total()
    return OneGroupLabels(alone, sum(alone.values()) / max(1, n_cells), n_groups, n_cells)


def _require_groups(n_cells: int, n_groups: int) -> None:
    if n_groups < LEAST_GROUPS:
        raise ReferenceSetError(
            f"{n_cells} cells of {n_groups} group(s) to calibrate with",
            expected=f"labelled cells of {LEAST_GROUPS} donors or datasets at least, to measure how they differ",
            remedy="calibrate by another column, or map without calibration",
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """Reference cells with neighbours from other groups, as if they were queries from another donor or dataset."""

    names: tuple[str, ...]
    tally: VoteTally
    """Votes without the neighbours of a cell's own group, at least one for each cell; labels are places in names."""
    truth: npt.NDArray[np.object_]
    """The cells' own labels, str [N]."""
    group: Codes
    """Donor or dataset, a place in group_names, int32 [N]."""
    group_names: tuple[str, ...]
    withheld_names: tuple[str, ...]
    withheld: VoteTally | None
    """The same cells also without the neighbours of their own label, as if the reference lacked it."""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the top label is the cell's own, bool [N]."""
        return np.asarray(named(self.names, self.tally.top) == self.truth, bool)

    @property
    def n_groups(self) -> int:
        """Groups that have cells."""
        return len(np.unique(self.group))

    def take(self, rows: Int64Array | npt.NDArray[np.bool_]) -> "Sample":
        """Some of the cells."""
        withheld = None if self.withheld is None else self.withheld.take(rows)
        votes = (self.names, self.tally.take(rows), self.truth[rows], self.group[rows], self.group_names)
        return Sample(*votes, self.withheld_names, withheld)


def calibration_sample(
    votes: LabelVotes, truth: pa.ChunkedArray, group: pa.ChunkedArray, withheld: LabelVotes | None
) -> Sample:
    """Gather the cells of the sample that have a label, a group and a vote.

    Args:
        votes: Of neighbours from other groups than the cell's own, [N, K].
        truth: The cells' own labels, [N].
        group: Their donors or datasets, [N].
        withheld: Of neighbours from other groups and with other labels than the cell's own; None to measure
            nothing about types that the reference lacks.

    Raises:
        ReferenceSetError: If fewer than three groups have such a cell.
    """
    own, (group_names, group_N) = known_texts(truth), encoded(known_texts(group))
    usable_N = votes.tally.has_votes & own.is_valid().to_numpy() & (group_N != NO_CODE)
    _require_groups(int(usable_N.sum()), len(np.unique(group_N[usable_N])))
    sample = Sample(
        votes.names,
        votes.tally,
        np.asarray(own.to_pylist(), object),
        group_N,
        tuple(group_names),
        withheld.names if withheld else (),
        withheld.tally if withheld else None,
    )
    return sample.take(usable_N)
