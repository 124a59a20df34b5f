"""Calibration: reference cells mapped as if they were queries show how often votes are right.

Shapes: N cells of the calibration sample, Q cells of the query.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import GroupKFold

from scgpt_ray.errors import ConfigError
from scgpt_ray.mapping.calibration_sample import OneGroupLabels, Sample
from scgpt_ray.mapping.calibrator import Calibrator, fit_calibrator
from scgpt_ray.mapping.held_out import HeldOut
from scgpt_ray.mapping.rejection import Thresholds, least_nearness, least_probability
from scgpt_ray.mapping.shift import HeldOutRange, Position, held_out_range
from scgpt_ray.mapping.votes import Floats, VoteTally

MAX_FOLDS = 5
"""Groups are held out together in at most so many folds."""


@dataclass(frozen=True)
class Targets:
    """What rejection must achieve; None leaves a kind of it out."""

    error: float | None = None
    """Largest share of wrong labels among the accepted cells of a new donor or dataset, with `CONFIDENCE`."""
    false_rejection: float | None = None
    """Share of cells that may be rejected by distance although the reference has their type."""


@dataclass(frozen=True)
class Calibration:
    """How votes on one label column become probabilities, and which of them are rejected."""

    calibrator: Calibrator
    thresholds: Thresholds
    targets: Targets
    held_out: HeldOut
    spread: HeldOutRange
    """Where held-out groups lie, to compare a query with."""
    one_group: OneGroupLabels

    def evaluate(self, names: tuple[str, ...], tally: VoteTally) -> tuple[Floats, list[str]]:
        """Probability that each top label is right, and why it is rejected (empty where it is not), [Q] each."""
        return _evaluated(self.calibrator, self.thresholds, names, tally)

    def shift(self, names: tuple[str, ...], tally: VoteTally) -> dict[str, Position]:
        """Where a query lies relative to held-out groups: see `HeldOutRange.positions`."""
        return self.spread.positions(names, tally, self.calibrator.probability(tally))


def calibrate(sample: Sample, targets: Targets, one_group: OneGroupLabels | None = None) -> Calibration:
    """Fit calibrator and thresholds to all cells, and measure both on groups held out in turn.

    Args:
        sample: Cells of three or more groups.
        targets: What rejection must achieve.
        one_group: Labels of the reference that one group alone has, to be reported.

    Raises:
        ConfigError: If no threshold reaches the target error, or held-out groups show that it does not hold.
    """
    calibrator, thresholds = _fit(sample, targets)
    if math.isinf(thresholds.probability):
        cells = f"{len(sample.truth)} calibration cells of {sample.n_groups} groups"
        raise _unreachable(targets, f"of {cells} even the surest err more")
    held_out = _held_out(sample, targets)
    if targets.error is not None and (held_out.error_accepted is None or held_out.error_accepted > targets.error):
        found = "no cell is accepted" if held_out.error_accepted is None else f"{held_out.error_accepted:.3f} is wrong"
        raise _unreachable(targets, f"in groups that thresholds were not fitted to, {found}")
    spread = held_out_range(sample, calibrator.probability(sample.tally))
    return Calibration(calibrator, thresholds, targets, held_out, spread, one_group or OneGroupLabels({}, 0.0))


def _unreachable(targets: Targets, reason: str) -> ConfigError:
    return ConfigError(
        f"a target error of {targets.error}",
        expected=f"one that held-out groups keep: {reason}",
        remedy="raise --target-error",
    )


def _fit(sample: Sample, targets: Targets) -> tuple[Calibrator, Thresholds]:
    names, tally, right_N = sample.names, sample.tally, sample.right
    calibrator = fit_calibrator(tally, right_N)
    thresholds = Thresholds(0.0, {}, None)
    if targets.false_rejection is not None:
        nearness = least_nearness(names, tally.top, tally.nearness, targets.false_rejection)
        thresholds = Thresholds(0.0, *nearness)
    if targets.error is not None:
        probability_N, reasons = _evaluated(calibrator, thresholds, names, tally)
        near_N = np.array(reasons, object) == ""
        least = _least(probability_N[near_N], sample.take(near_N), targets.error)
        thresholds = replace(thresholds, probability=least)
    return calibrator, thresholds


def _least(probability_N: Floats, near: Sample, target_error: float) -> float:
    """The threshold of probability; infinity where fewer than two groups have cells that are near enough."""
    if near.n_groups <= 1:
        return math.inf
    return least_probability(probability_N, near.right, near.group, target_error)


def _evaluated(
    calibrator: Calibrator, thresholds: Thresholds, names: tuple[str, ...], tally: VoteTally
) -> tuple[Floats, list[str]]:
    probability_N = calibrator.probability(tally)
    return probability_N, thresholds.reasons(names, tally.top, tally.nearness, probability_N)


def _held_out(sample: Sample, targets: Targets) -> HeldOut:
    """Each fold evaluated by a calibration fitted to the others; a group is in one fold."""
    n_cells = len(sample.truth)
    probability_N, reason_N, withheld_N = np.zeros(n_cells), np.full(n_cells, "", object), np.full(n_cells, "", object)
    folds = GroupKFold(min(MAX_FOLDS, sample.n_groups))
    for others, fold in folds.split(sample.group, groups=sample.group):
        fitted, rest = _fit(sample.take(others), targets), sample.take(fold)
        probability_N[fold], reason_N[fold] = _evaluated(*fitted, rest.names, rest.tally)
        if rest.withheld is not None:
            _, withheld_N[fold] = _evaluated(*fitted, rest.withheld_names, rest.withheld)
    return HeldOut.of(sample, probability_N, reason_N, withheld_N)
