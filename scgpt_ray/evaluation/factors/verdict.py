"""Verdicts on factors as sentences, with the numbers behind them."""

from typing import Any

from scgpt_ray.evaluation.factors.effects import DEPTH, FactorEffect, FactorInEmbedding
from scgpt_ray.evaluation.factors.expression import GLOBAL_FOLD, ExpressionShift

_NAMED_GENES = 6
_KINDS = {
    "type I": "a type I effect, global",
    "type II": "a type II effect, gene-specific",
    "both": "a type I and a type II effect, global and gene-specific",
    "none": "no effect on the counts",
}


def verdict(effect: FactorEffect) -> str:
    """The effect of a factor, and which embeddings carry it, in a few sentences."""
    return " ".join(sentences(effect))


def sentences(effect: FactorEffect) -> list[str]:
    """The sentences of the verdict: first the effect on the counts, then one for each embedding."""
    if effect.name == DEPTH:
        first = f"{effect.name}: the depth itself, which every type I effect changes."
    elif effect.shift is None or effect.kind is None:
        first = f"{effect.name}: whether its effect is type I or type II cannot be determined: {effect.no_shift}."
    else:
        first = f"{effect.name}: {_KINDS[effect.kind]}. {_counts(effect.shift)}"
    return [first, *(_embedding(carried) for carried in effect.embeddings)]


def effect_dict(effect: FactorEffect) -> dict[str, Any]:
    """The effect of a factor as plain values for JSON, with kind and verdict."""
    return {
        "name": effect.name,
        "kind": effect.kind,
        "verdict": verdict(effect),
        "levels": effect.levels,
        "n_missing": effect.n_missing,
        "shift": effect.shift.to_dict() if effect.shift else None,
        "no_shift": effect.no_shift,
        "embeddings": [carried.to_dict() for carried in effect.embeddings],
    }


def _counts(shift: ExpressionShift) -> str:
    depth = f"Within labels the depth of {shift.level} is {shift.depth_fold:.2f} times that of the others"
    limit = "" if shift.is_global else f" (called global from {GLOBAL_FOLD:g}-fold)"
    genes = f"at equal depth {shift.n_driven:,} of {shift.n_tested:,} genes differ"
    strongest = list(dict.fromkeys(f"{gene.gene} ({_direction(gene.effect)} in {gene.level})" for gene in shift.driven))
    named = f", most of all {', '.join(strongest[:_NAMED_GENES])}" if strongest else ""
    return f"{depth}{limit}; {genes}{named}."


def _direction(effect: float) -> str:
    return "more" if effect > 0 else "less"


def _embedding(carried: FactorInEmbedding) -> str:
    variance = carried.variance
    clauses = [
        f"explains {variance.factor:.1%} of the variance in addition to the label's {variance.label:.1%}, "
        f"and {variance.interaction:.1%} by effects that differ between labels"
    ]
    probe, purity = carried.probe, carried.purity
    if probe is not None:
        held_out = {"cells": "held-out cells", "groups": "held-out batch keys"}.get(
            probe.held_out, "held-out cells or batch keys"
        )
        clauses.append(
            f"a linear probe predicts it for {held_out} with {probe.measure} {probe.score:.2f} "
            f"(chance {probe.chance:.2f})"
        )
    if purity is not None:
        clauses.append(
            f"{purity.share:.0%} of a cell's neighbours of its label share it (by chance {purity.expected:.0%})"
        )
    ends = {
        True: "this embedding carries it",
        False: "this embedding hardly carries it",
        None: "no label has enough cells of two levels for a probe",
    }
    return f"In {carried.embedding} it {'; '.join(clauses)}: {ends[carried.is_carried]}."
