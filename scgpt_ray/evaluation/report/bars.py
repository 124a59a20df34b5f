"""Bars of shares in a report: what factors explain of embeddings, and what a vocabulary covers of cells."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from scgpt_ray.evaluation.factors.effects import FactorEffect, FactorInEmbedding

_VARIANCE = ("label", "factor", "interaction")
_KEY = {
    "label": "label",
    "factor": "factor, beside the label",
    "interaction": "factor, differently for each label",
    "share": "linear probe",
    "chance": "chance",
}


def factor_bars(effects: Sequence[FactorEffect]) -> str:
    """What each factor explains of each embedding's variance, and how well a probe reads it: HTML."""
    head = "".join(f"<span>{text}</span>" for text in ("", "variance explained", "factor", "probe", "against chance"))
    body = "".join(
        f"<h3>{escape(effect.name)}</h3>" + "".join(_factor_row(carried) for carried in effect.embeddings)
        for effect in effects
    )
    return f'<div class="card bars">{_key()}<div class="row double head">{head}</div>{body}</div>'


def _key() -> str:
    names = "".join(
        f'<span><svg aria-hidden="true"><rect class="{kind}" width="12" height="12"{_thin(kind)}/></svg>{name}</span>'
        for kind, name in _KEY.items()
    )
    return f'<p class="key">{names}</p>'


def _thin(kind: str) -> str:
    return ' x="5" style="width:2px"' if kind == "chance" else ""


def _factor_row(carried: FactorInEmbedding) -> str:
    variance, probe = carried.variance, carried.probe
    shares = {kind: getattr(variance, kind) for kind in _VARIANCE}
    told = ", ".join(f"{_KEY[kind]} {share:.1%}" for kind, share in shares.items())
    probed = (
        _bar({"share": probe.score}, f"probe {probe.score:.2f}, chance {probe.chance:.2f}", probe.chance)
        if probe
        else ""
    )
    beside = f"{probe.score:.2f} / {probe.chance:.2f}{' R²' if probe.measure == 'R2' else ''}" if probe else "no probe"
    return (
        f'<div class="row double"><span class="name">{escape(carried.embedding)}</span>'
        f'{_bar(shares, told)}<span class="value">{variance.factor:.1%}</span>'
        f'{probed or "<span></span>"}<span class="value">{beside}</span></div>'
    )


def coverage_bars(coverage: Mapping[str, Any], n_cells: int, n_empty: int) -> str:
    """What genes of the vocabulary cover of the cells, and the cells that have none of them: HTML.

    Args:
        coverage: As the manifest has it.
        n_cells: Cells of the run.
        n_empty: Those without a count of any gene of the vocabulary.
    """
    rows = {
        "counts": (coverage["fraction"], f"{coverage['fraction']:.1%}"),
        "genes": (
            coverage["genes_matched"] / max(1, coverage["genes_total"]),
            f"{coverage['genes_matched']:,} of {coverage['genes_total']:,}",
        ),
        "cells": ((n_cells - n_empty) / max(1, n_cells), f"{n_empty:,} of {n_cells:,} empty"),
    }
    body = "".join(
        f'<div class="row"><span class="name">{name}</span>{_bar({"share": share}, told)}'
        f'<span class="value">{told}</span></div>'
        for name, (share, told) in rows.items()
    )
    missing = ", ".join(f"{gene} {share:.1%}" for gene, share in coverage["missing"])
    note = f'<p class="faint">Most counts outside the vocabulary: {escape(missing)}.</p>' if missing else ""
    return f'<div class="card bars">{body}</div>{note}'


def _bar(shares: Mapping[str, float], told: str, mark: float | None = None) -> str:
    """Shares of 1 one after the other, with a mark across; negative ones have no length."""
    parts, start = [], 0.0
    for kind, share in shares.items():
        length = min(max(0.0, share), 1 - start)
        parts.append(f'<rect class="{kind}" x="{start:.2%}" width="{length:.2%}" height="100%"/>')
        start += length
    if mark is not None:
        parts.append(f'<rect class="chance" x="{mark:.2%}" width="2" height="100%"/>')
    return f'<svg role="img" aria-label="{escape(told)}">{"".join(parts)}</svg>'
