"""Calibration: reference cells mapped as if they were queries teach what a vote is worth.

Shapes: N cells of the calibration sample.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.mapping.ballot import Ballot, named
from scgpt_ray.mapping.calibrator import Calibrator, fit_calibrator
from scgpt_ray.mapping.label_table import encoded
from scgpt_ray.mapping.rejection import TOO_FAR, Thresholds, least_nearness, least_probability
from scgpt_ray.mapping.reliability import Reliability, reliability
from scgpt_ray.mapping.vote import ABSTAINS, Codes, Election, Floats
from scgpt_ray.schema import Int64Array

MAX_FOLDS = 5
"""Groups are held out together in at most so many folds."""


@dataclass(frozen=True)
class Targets:
    """What rejection is for; None leaves a kind of it out."""

    error: float | None = None
    """Wanted share of wrong labels among the accepted cells."""
    false_rejection: float | None = None
    """Share of cells that may be rejected by distance although the reference has their type."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Reference cells whose neighbours were sought as if they were queries from another donor or dataset."""

    names: tuple[str, ...]
    election: Election
    """Held in all, with the neighbours of a cell's own group left out; winners are places in names."""
    truth: npt.NDArray[np.object_]
    """The cells' own labels, str [N]."""
    group: Codes
    """Donor or dataset, int32 [N]."""
    withheld_names: tuple[str, ...]
    withheld: Election | None
    """The same cells with the neighbours of their own label left out too, as if the reference lacked it."""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the own label won, bool [N]."""
        return np.asarray(named(self.names, self.election.winner) == self.truth, bool)

    def take(self, rows: Int64Array | npt.NDArray[np.bool_]) -> "Sample":
        """Some of the cells."""
        withheld = None if self.withheld is None else self.withheld.take(rows)
        return Sample(
            self.names, self.election.take(rows), self.truth[rows], self.group[rows], self.withheld_names, withheld
        )


def calibration_sample(
    ballot: Ballot, truth: pa.ChunkedArray, group: pa.ChunkedArray, withheld: Ballot | None
) -> Sample:
    """Gather the cells that can teach something: those with a label, a group and a vote.

    Args:
        ballot: Votes of neighbours from other groups than the cell's own, [N, K].
        truth: The cells' own labels, [N].
        group: Their donors or datasets, [N].
        withheld: Votes of neighbours from other groups and with other labels than the cell's own; None to learn
            nothing about types that the reference lacks.

    Raises:
        ReferenceSetError: If fewer than two groups have such a cell.
    """
    own, (_, group_N) = truth.cast(pa.string()), encoded(group.cast(pa.string()))
    usable_N = ballot.election.held & own.is_valid().to_numpy() & (group_N != ABSTAINS)
    if len(np.unique(group_N[usable_N])) <= 1:
        raise ReferenceSetError(
            f"{int(usable_N.sum())} cells of {len(np.unique(group_N[usable_N]))} group(s) to calibrate with",
            expected="labelled cells of two donors or datasets at least",
            remedy="calibrate by another column, or map without calibration",
        )
    sample = Sample(
        ballot.names,
        ballot.election,
        np.asarray(own.to_pylist(), object),
        group_N,
        withheld.names if withheld else (),
        withheld.election if withheld else None,
    )
    return sample.take(usable_N)


@dataclass(frozen=True)
class Withheld:
    """Cells of one label that were mapped as if the reference lacked it."""

    cells: int
    too_far: float
    """Share of them rejected by distance."""
    rejected: float
    """Share of them rejected for any reason."""


@dataclass(frozen=True)
class HeldOut:
    """What the calibration did to cells of groups that it had not seen (cross-fitted); fractions of 1."""

    cells: int
    groups: int
    accuracy: float
    """Of all cells."""
    before: Reliability
    """Of the share of the votes."""
    after: Reliability
    """Of the calibrated probability."""
    coverage: float
    """Cells that keep their label."""
    error_accepted: float | None
    """Wrong labels among these; None where there are none."""
    false_rejection: float
    """Cells rejected by distance."""
    withheld: Mapping[str, Withheld]
    """By label; empty where no cell was mapped without its own label."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"before": self.before.to_dict(), "after": self.after.to_dict()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "HeldOut":
        """The inverse of `to_dict`."""
        withheld = {label: Withheld(**figures) for label, figures in plain["withheld"].items()}
        curves = {name: Reliability.from_dict(plain[name]) for name in ("before", "after")}
        return cls(**plain | curves | {"withheld": withheld})


@dataclass(frozen=True)
class Calibration:
    """What a vote on one label column is worth."""

    calibrator: Calibrator
    thresholds: Thresholds
    targets: Targets
    held_out: HeldOut

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: part.to_dict() for name, part in vars(self).items() if name != "targets"} | {
            "targets": asdict(self.targets)
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Calibration":
        """The inverse of `to_dict`."""
        return cls(
            Calibrator.from_dict(plain["calibrator"]),
            Thresholds.from_dict(plain["thresholds"]),
            Targets(**plain["targets"]),
            HeldOut.from_dict(plain["held_out"]),
        )

    def evaluate(self, names: tuple[str, ...], election: Election) -> tuple[Floats, list[str]]:
        """Probability that each winner is right, and why it is rejected (empty where it is not), [Q] each."""
        probability = self.calibrator.probability(election)
        return probability, self.thresholds.reasons(names, election.winner, election.nearness, probability)


def calibrate(sample: Sample, targets: Targets) -> Calibration:
    """Fit calibrator and thresholds to all cells, and measure both on groups held out in turn.

    Raises:
        ConfigError: If no threshold reaches the wanted error.
    """
    calibrator, thresholds = _fit(sample, targets)
    if math.isinf(thresholds.probability):
        raise ConfigError(
            f"a target error of {targets.error}",
            expected=f"one that some cells reach: of {len(sample.truth)} calibration cells even the surest err more",
            remedy="raise --target-error",
        )
    return Calibration(calibrator, thresholds, targets, _held_out(sample, targets))


def folds(group_N: Codes) -> Int64Array:
    """Fold of each cell, [N]: groups, those with most cells first, each go to the fold that has fewest.

    A group is in one fold. There are as many folds as groups, at most MAX_FOLDS.
    """
    group, place_N, cells = np.unique(group_N, return_inverse=True, return_counts=True)
    sizes = np.zeros(min(MAX_FOLDS, len(group)), np.int64)
    fold = np.empty(len(group), np.int64)
    for number in np.argsort(-cells, kind="stable"):
        fold[number] = np.argmin(sizes)
        sizes[fold[number]] += cells[number]
    return fold[place_N]


def _fit(sample: Sample, targets: Targets) -> tuple[Calibrator, Thresholds]:
    names, election, right_N = sample.names, sample.election, sample.right
    calibrator = fit_calibrator(election, right_N)
    thresholds = Thresholds(0.0, {}, None)
    if targets.false_rejection is not None:
        nearness = least_nearness(names, election.winner, election.nearness, targets.false_rejection)
        thresholds = Thresholds(0.0, *nearness)
    if targets.error is not None:
        probability_N = calibrator.probability(election)
        near_N = _accepted(thresholds.reasons(names, election.winner, election.nearness, probability_N))
        least = least_probability(probability_N[near_N], right_N[near_N], targets.error)
        thresholds = replace(thresholds, probability=least)
    return calibrator, thresholds


def _held_out(sample: Sample, targets: Targets) -> HeldOut:
    """Each fold evaluated by what the others teach."""
    n_cells, fold_N = len(sample.truth), folds(sample.group)
    probability_N, reason_N = np.zeros(n_cells), np.full(n_cells, "", object)
    withheld_N = np.full(n_cells, "", object)
    for fold in np.unique(fold_N):
        calibrator, thresholds = _fit(sample.take(fold_N != fold), targets)
        rows = np.flatnonzero(fold_N == fold)
        held = sample.election.take(rows)
        probability_N[rows] = calibrator.probability(held)
        reason_N[rows] = thresholds.reasons(sample.names, held.winner, held.nearness, probability_N[rows])
        if sample.withheld is not None:
            lost = sample.withheld.take(rows)
            withheld_N[rows] = thresholds.reasons(
                sample.withheld_names, lost.winner, lost.nearness, calibrator.probability(lost)
            )
    right_N, accepted_N = sample.right, _accepted(reason_N)
    return HeldOut(
        cells=n_cells,
        groups=len(np.unique(sample.group)),
        accuracy=float(right_N.mean()),
        before=reliability(sample.election.share, right_N),
        after=reliability(probability_N, right_N),
        coverage=float(accepted_N.mean()),
        error_accepted=float(1 - right_N[accepted_N].mean()) if accepted_N.any() else None,
        false_rejection=float((reason_N == TOO_FAR).mean()),
        withheld=_withheld(sample, withheld_N),
    )


def _withheld(sample: Sample, reason_N: npt.NDArray[np.object_]) -> dict[str, Withheld]:
    if sample.withheld is None:
        return {}
    found = {}
    for label in sorted(set(sample.truth)):
        reason = reason_N[sample.truth == label]
        too_far, rejected = float((reason == TOO_FAR).mean()), float((~_accepted(reason)).mean())
        found[label] = Withheld(len(reason), too_far, rejected)
    return found


def _accepted(reasons: list[str] | npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.asarray(reasons, object) == "", bool)
