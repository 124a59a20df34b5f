"""A vote over one label column, by stated rules.

Shapes: Q queries, K neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.mapping.label_table import NeighborLabels, broken, neighbor_labels, neighbor_rows
from scgpt_ray.mapping.vote import ABSTAINS, Codes, Election, Floats, elect
from scgpt_ray.mapping.weighting import balance_weights, distance_weights
from scgpt_ray.schema import Float32Matrix, Int64Array

CountOfValue: TypeAlias = Mapping[str | None, int]
"""Text of a value, None for null -> reference cells that have it."""

CellCounts: TypeAlias = Mapping[str, CountOfValue]
"""Column -> value -> reference cells."""


@dataclass(frozen=True)
class VoteRules:
    """How neighbours vote. A tie goes to the higher sum of scores, then to the label that sorts first."""

    weighting: Literal["uniform", "distance"] = "uniform"
    """One vote each, or more for the nearer (`distance_weights`)."""
    balance_by: str | None = None
    """Column, such as dataset_id or the label column: each vote is divided by the share of the reference that has the
    neighbour's value in it (`balance_weights`). None: votes are not balanced."""


@dataclass(frozen=True, eq=False)
class Ballot:
    """The votes of every query's neighbours, and whom they elect."""

    names: tuple[str, ...]
    """Labels, sorted."""
    codes_QK: Codes
    """Whom each neighbour votes for: a place in names, or -1."""
    weights_QK: Floats
    """How much it counts."""
    election: Election
    """The outcome."""

    @property
    def winners(self) -> npt.NDArray[np.object_]:
        """Elected labels, str [Q]; None where nobody voted."""
        return named(self.names, self.election.winner)

    @property
    def runners_up(self) -> npt.NDArray[np.object_]:
        """Labels that came second, str [Q]; None where there is no other."""
        return named(self.names, self.election.runner_up)


def hold_ballot(
    neighbor_ids_QK: Int64Array,
    scores_QK: Float32Matrix,
    labels: pa.Table,
    column: str,
    rules: VoteRules,
    reference_cells: CellCounts,
) -> Ballot:
    """Let the neighbours vote on a label column.

    Args:
        neighbor_ids_QK: int64 [Q, K], -1 where there is no neighbour.
        scores_QK: float32 [Q, K].
        labels: soma_joinid, the column, and rules.balance_by, each neighbour once; a null label does not vote.
        column: Label column.
        rules: How they vote.
        reference_cells: Cells per value over the whole reference, of the column that votes are balanced by; not read
            if they are not.

    Raises:
        ReferenceSetError: If a column is absent, a neighbour is missing or twice in the table, or a value of it was
            not counted.
    """
    rows_QK = neighbor_rows(neighbor_ids_QK, labels)
    voters = neighbor_labels(rows_QK, labels, column)
    weights_QK = (voters.codes_QK != ABSTAINS).astype(np.float64)
    if rules.weighting == "distance":
        weights_QK = distance_weights(voters.codes_QK, scores_QK)
    if rules.balance_by is not None:
        groups = neighbor_labels(rows_QK, labels, rules.balance_by)
        weights_QK = weights_QK * _balanced(voters, groups, reference_cells[rules.balance_by])
    election = elect(voters.codes_QK, scores_QK, len(voters.names), weights_QK)
    return Ballot(voters.names, voters.codes_QK, weights_QK, election)


def named(names: tuple[str, ...], codes_Q: Codes) -> npt.NDArray[np.object_]:
    """The label of each code, str [Q]; None for -1."""
    return np.array([*names, None], object)[codes_Q]


def _balanced(voters: NeighborLabels, groups: NeighborLabels, cells: CountOfValue) -> Floats:
    """Weights by the voters' groups; the cells of the reference without a value, if any, are one group more."""
    without = (voters.codes_QK != ABSTAINS) & (groups.codes_QK == ABSTAINS)
    met = {*groups.names, None} if without.any() else set(groups.names)
    uncounted = sorted(str(value) for value in met - cells.keys())
    if uncounted:
        raise broken(f"a neighbour has {uncounted[0]}, which is none of the reference's {len(cells)} values")
    values = sorted(cells, key=lambda value: (value is None, value or ""))
    place = {value: code for code, value in enumerate(values)}
    codes = np.array([*(place[name] for name in groups.names), place.get(None, ABSTAINS)], np.int32)
    return balance_weights(codes[groups.codes_QK], np.array([cells[value] for value in values], np.int64))
