"""Calibration: reference cells mapped as if they were queries show how often votes are right.

Shapes: N cells of the calibration sample.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.model_selection import GroupKFold

from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.mapping.calibrator import Calibrator, Reliability, fit_calibrator, reliability
from scgpt_ray.mapping.label_table import NO_CODE, Codes, encoded
from scgpt_ray.mapping.rejection import TOO_FAR, Thresholds, least_nearness, least_probability
from scgpt_ray.mapping.votes import Floats, LabelVotes, VoteTally, named
from scgpt_ray.schema import Int64Array

MAX_FOLDS = 5
"""Groups are held out together in at most so many folds."""


@dataclass(frozen=True)
class Targets:
    """What rejection must achieve; None leaves a kind of it out."""

    error: float | None = None
    """Largest share of wrong labels among the accepted cells."""
    false_rejection: float | None = None
    """Share of cells that may be rejected by distance although the reference has their type."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Reference cells whose neighbours were sought as if they were queries from another donor or dataset."""

    names: tuple[str, ...]
    tally: VoteTally
    """Votes without the neighbours of a cell's own group, at least one for each cell; labels are places in names."""
    truth: npt.NDArray[np.object_]
    """The cells' own labels, str [N]."""
    group: Codes
    """Donor or dataset, int32 [N]."""
    withheld_names: tuple[str, ...]
    withheld: VoteTally | None
    """The same cells with the neighbours of their own label left out too, as if the reference lacked it."""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the top label is the cell's own, bool [N]."""
        return np.asarray(named(self.names, self.tally.top) == self.truth, bool)

    def take(self, rows: Int64Array | npt.NDArray[np.bool_]) -> "Sample":
        """Some of the cells."""
        withheld = None if self.withheld is None else self.withheld.take(rows)
        return Sample(
            self.names, self.tally.take(rows), self.truth[rows], self.group[rows], self.withheld_names, withheld
        )


def calibration_sample(
    votes: LabelVotes, truth: pa.ChunkedArray, group: pa.ChunkedArray, withheld: LabelVotes | None
) -> Sample:
    """Gather the cells to learn from: those with a label, a group and a vote.

    Args:
        votes: Of neighbours from other groups than the cell's own, [N, K].
        truth: The cells' own labels, [N].
        group: Their donors or datasets, [N].
        withheld: Of neighbours from other groups and with other labels than the cell's own; None to learn
            nothing about types that the reference lacks.

    Raises:
        ReferenceSetError: If fewer than two groups have such a cell.
    """
    own, (_, group_N) = truth.cast(pa.string()), encoded(group.cast(pa.string()))
    usable_N = votes.tally.has_votes & own.is_valid().to_numpy() & (group_N != NO_CODE)
    if len(np.unique(group_N[usable_N])) <= 1:
        raise ReferenceSetError(
            f"{int(usable_N.sum())} cells of {len(np.unique(group_N[usable_N]))} group(s) to calibrate with",
            expected="labelled cells of two donors or datasets at least",
            remedy="calibrate by another column, or map without calibration",
        )
    sample = Sample(
        votes.names,
        votes.tally,
        np.asarray(own.to_pylist(), object),
        group_N,
        withheld.names if withheld else (),
        withheld.tally if withheld else None,
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
    """The calibration on cells of groups that it had not seen (cross-validated); fractions of 1."""

    cells: int
    groups: int
    accuracy: float
    """Of all cells."""
    before: Reliability
    """Of the share of the votes."""
    after: Reliability
    """Of the calibrated probability."""
    accepted: float
    """Cells that keep their label."""
    error_accepted: float | None
    """Wrong labels among these; None where no cell keeps its label."""
    false_rejection: float
    """Cells rejected by distance."""
    withheld: Mapping[str, Withheld]
    """By label; empty where no cell was mapped without its own label."""


@dataclass(frozen=True)
class Calibration:
    """How votes on one label column become probabilities, and which of them are rejected."""

    calibrator: Calibrator
    thresholds: Thresholds
    targets: Targets
    held_out: HeldOut

    def evaluate(self, names: tuple[str, ...], tally: VoteTally) -> tuple[Floats, list[str]]:
        """Probability that each top label is right, and why it is rejected (empty where it is not), [Q] each."""
        return _evaluated(self.calibrator, self.thresholds, names, tally)


def calibrate(sample: Sample, targets: Targets) -> Calibration:
    """Fit calibrator and thresholds to all cells, and measure both on groups held out in turn.

    Raises:
        ConfigError: If no threshold reaches the target error.
    """
    calibrator, thresholds = _fit(sample, targets)
    if math.isinf(thresholds.probability):
        raise ConfigError(
            f"a target error of {targets.error}",
            expected=f"one that some cells reach: of {len(sample.truth)} calibration cells even the surest err more",
            remedy="raise --target-error",
        )
    return Calibration(calibrator, thresholds, targets, _held_out(sample, targets))


def _fit(sample: Sample, targets: Targets) -> tuple[Calibrator, Thresholds]:
    names, tally, right_N = sample.names, sample.tally, sample.right
    calibrator = fit_calibrator(tally, right_N)
    thresholds = Thresholds(0.0, {}, None)
    if targets.false_rejection is not None:
        nearness = least_nearness(names, tally.top, tally.nearness, targets.false_rejection)
        thresholds = Thresholds(0.0, *nearness)
    if targets.error is not None:
        probability_N, reason_N = _evaluated(calibrator, thresholds, names, tally)
        near_N = _accepted(reason_N)
        least = least_probability(probability_N[near_N], right_N[near_N], targets.error)
        thresholds = replace(thresholds, probability=least)
    return calibrator, thresholds


def _evaluated(
    calibrator: Calibrator, thresholds: Thresholds, names: tuple[str, ...], tally: VoteTally
) -> tuple[Floats, list[str]]:
    probability_N = calibrator.probability(tally)
    return probability_N, thresholds.reasons(names, tally.top, tally.nearness, probability_N)


def _held_out(sample: Sample, targets: Targets) -> HeldOut:
    """Each fold evaluated by a calibration fitted to the others; a group is in one fold."""
    n_cells, n_groups = len(sample.truth), len(np.unique(sample.group))
    probability_N, reason_N, withheld_N = np.zeros(n_cells), np.full(n_cells, "", object), np.full(n_cells, "", object)
    folds = GroupKFold(min(MAX_FOLDS, n_groups))
    for others, fold in folds.split(sample.group, groups=sample.group):
        fitted, rest = _fit(sample.take(others), targets), sample.take(fold)
        probability_N[fold], reason_N[fold] = _evaluated(*fitted, rest.names, rest.tally)
        if rest.withheld is not None:
            _, withheld_N[fold] = _evaluated(*fitted, rest.withheld_names, rest.withheld)
    right_N, accepted_N = sample.right, _accepted(reason_N)
    return HeldOut(
        cells=n_cells,
        groups=n_groups,
        accuracy=float(right_N.mean()),
        before=reliability(sample.tally.share, right_N),
        after=reliability(probability_N, right_N),
        accepted=float(accepted_N.mean()),
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
