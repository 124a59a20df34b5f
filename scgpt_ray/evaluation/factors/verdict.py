"""Verdicts on factors as sentences, with the numbers behind them."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from scgpt_ray.evaluation.factors.contrast import SIGNIFICANCE
from scgpt_ray.evaluation.factors.effects import CELL, DEPTH, FactorEffect, FactorInEmbedding
from scgpt_ray.evaluation.factors.expression import DepthChange, GeneChanges
from scgpt_ray.evaluation.factors.probe import Probe

_NAMED_GENES = 6

SIZES = {"negligible": 0.01, "small": 0.06, "moderate": 0.14, "large": math.inf}
"""Size of an effect -> share of the variance below which it has that name: Cohen's conventions for eta squared
(Statistical Power Analysis for the Behavioral Sciences, 2nd ed., 1988, pages 285 to 287: f = .10, .25 and .40)."""

FOLDS = {"small": 1.25, "moderate": 2.0, "large": math.inf}
"""The same for a ratio of depths, either way; ours, without another source."""

_KINDS = {
    "type I": "a type I effect, global",
    "type II": "a type II effect, gene-specific",
    "both": "a type I and a type II effect, global and gene-specific",
    "not detected": "below the detection thresholds of type I and type II effects",
}


def verdict(effect: FactorEffect) -> str:
    """The effect of a factor, and which embeddings carry it, in a few sentences."""
    return " ".join(sentences(effect))


def sentences(effect: FactorEffect) -> list[str]:
    """The sentences of the verdict: first the effect on the counts, then one for each embedding."""
    if effect.name == DEPTH:
        first = f"{effect.name}: the depth itself, which every type I effect changes."
    elif effect.shift is None:
        first = f"{effect.name}: cannot tell whether its effect is type I or type II: {effect.no_shift}."
    else:
        first = f"{_kind(effect)} {_depth(effect.shift.depth)}{_genes(effect.shift.genes)}."
    if effect.is_condition:
        first += f" {effect.name} is a condition: its effect should stay, and is no fault of an embedding."
    return [first, *(_embedding(carried, effect) for carried in effect.embeddings)]


def size_of(value: float, limits: Mapping[str, float]) -> str:
    """The name of an effect's size: that of the first limit above it."""
    return next(name for name, limit in limits.items() if value < limit)


def effect_dict(effect: FactorEffect) -> dict[str, Any]:
    """The effect of a factor as plain values for JSON, with kind and verdict."""
    embeddings = [carried.to_dict() for carried in effect.embeddings]
    return asdict(effect) | {"kind": effect.kind, "verdict": verdict(effect), "embeddings": embeddings}


def design(effect: FactorEffect) -> str:
    """What is compared with what, such as `4 against 4 donor`; the cells without replicates."""
    if effect.unit == CELL or effect.shift is None:
        return "these cells only" if effect.unit == CELL else f"by {effect.unit}"
    shift = effect.shift
    if shift.is_paired:
        return f"within {shift.n_level} replicates ({effect.unit})"
    return f"{shift.n_level} replicates ({effect.unit}) against {shift.n_others}"


def _kind(effect: FactorEffect) -> str:
    if effect.kind == "cannot tell":
        about = ", which is about these cells only" if effect.unit == CELL else ""
        return (
            f"{effect.name}: cannot tell whether its effect is type I or type II: {effect.no_shift}. "
            f"Unit: {effect.unit}{about}."
        )
    return f"{effect.name}: {_KINDS[effect.kind]}. Compared: {design(effect)}."


def _depth(depth: DepthChange) -> str:
    found = f"Within labels the depth of {depth.level} is {depth.ratio:.2f} times that of the others"
    if depth.p is None or depth.low is None or depth.high is None or depth.threshold is None:
        return f"{found} (not tested)"
    tested = f"95 % interval {depth.low:.2f} to {depth.high:.2f}, p = {depth.p:.2g}"
    if not depth.is_claimed:
        return f"{found} ({tested}; below the detection threshold of {depth.threshold:.2f} times)"
    return f"{found}, a {size_of(max(depth.ratio, 1 / depth.ratio), FOLDS)} change ({tested})"


def _genes(genes: GeneChanges | None) -> str:
    if genes is None:
        return "; no gene has enough counts"
    shown = genes.strongest if genes.n_driven is None else genes.strongest[: genes.n_driven]
    strongest = list(
        dict.fromkeys(f"{gene.gene} ({'more' if gene.log2_fold > 0 else 'less'} in {gene.level})" for gene in shown)
    )
    named = f", most of all {', '.join(strongest[:_NAMED_GENES])}" if strongest else ""
    if genes.n_driven is None:
        return f"; at equal depth genes differ{named} (not tested)"
    found = f"at equal depth {genes.n_driven:,} of {genes.n_genes:,} genes differ at a false discovery rate of "
    found += f"{SIGNIFICANCE:.0%}{named} (p = {genes.p:.2g} for {genes.n_needed})"
    below = "" if genes.is_claimed else (
        f"; below the detection threshold of {genes.threshold:.2f} times in {genes.n_needed} genes"
    )  # fmt: skip
    return f"; {found}{below}"


def _embedding(carried: FactorInEmbedding, effect: FactorEffect) -> str:
    variance = carried.variance
    clauses = [
        f"explains {variance.factor:.1%} of the variance, a {size_of(variance.factor, SIZES)} share, in addition to "
        f"the {variance.label:.1%} of the {effect.within}, and {variance.interaction:.1%} by effects that differ "
        "between labels"
    ]
    probe, purity = carried.probe, carried.purity
    if probe is not None:
        clauses.append(_probe(probe, effect.unit))
    if purity is not None:
        clauses.append(
            f"{purity.share:.0%} of a cell's neighbours of its label share it (by chance {purity.expected:.0%})"
        )
    ends = {
        True: "this embedding carries it",
        False: f"below the detection threshold of {probe.threshold or 0:.2f}" if probe else "",
        None: "cannot tell whether this embedding carries it for other cells than these"
        if probe
        else "no label has enough cells of two levels, and replicates to hold out, for a probe",
    }
    return f"In {carried.embedding} it {'; '.join(clauses)}: {ends[carried.is_carried]}."


def _probe(probe: Probe, unit: str) -> str:
    held_out = "held-out cells" if probe.held_out == "cells" else f"held-out replicates ({unit})"
    interval = "" if probe.p is None else f"95 % interval {probe.low:.2f} to {probe.high:.2f}, p = {probe.p:.2g}, "
    return (
        f"a linear probe predicts it for {held_out} with balanced accuracy {probe.score:.2f} "
        f"({interval}chance {probe.chance:.2f})"
    )
