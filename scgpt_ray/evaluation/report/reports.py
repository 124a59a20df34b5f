"""The reports of a mapping, an integration and a gate: one HTML file each, without outside resources.

Texts and layout are in the templates in `web/`, for a screen, light or dark, a phone, and paper.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from scgpt_ray.evaluation.factors.effects import FactorEffect
from scgpt_ray.evaluation.factors.verdict import FOLDS, SIZES, sentences
from scgpt_ray.evaluation.integration.metrics import AVERAGES, METRICS, Integration
from scgpt_ray.evaluation.labels.label_evaluation import LabelEvaluation
from scgpt_ray.evaluation.labels.selective_accuracy import SHARES
from scgpt_ray.evaluation.report.findings import Findings
from scgpt_ray.evaluation.report.page import page
from scgpt_ray.evaluation.report.picture import Picture
from scgpt_ray.evaluation.report.scatter import Scatter
from scgpt_ray.mapping.calibration import Calibration
from scgpt_ray.mapping.promise import Promise
from scgpt_ray.records import GateReport

_GROUPS = {
    "averages": ("total", "avg_bio", "avg_batch"),
    "bio conservation": ("nmi", "ari", "asw_label", "clisi"),
    "batch correction": ("graph_connectivity", "asw_batch", "ilisi", "kbet", "pcr_comparison"),
}
"""Columns of the table of metrics, arranged as scIB's; larger is better in all."""


def map_report(
    title: str,
    findings: Findings,
    facts: Mapping[str, object],
    cells: Scatter | str,
    covered: Mapping[str, Any],
    pictures: Sequence[Picture],
    evaluation: LabelEvaluation | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    promises: Mapping[str, Promise] | None = None,
) -> str:
    """Write the report of a mapping.

    Args:
        title: Heading, such as `pbmc3k mapped onto pbmc_facs`.
        findings: What is said first.
        facts: What was mapped onto what and how: name -> value, in order; ints get thousands separators.
        cells: The query cells as dots, or why they are not drawn.
        covered: `coverage` as the manifest has it, with `n_cells` of the run and `n_empty`, those without a count of
            any gene of the vocabulary.
        pictures: Shown in order.
        evaluation: Where the truth is known.
        calibrations: Of the label columns that are calibrated.
        promises: What they promise of the query.

    Returns:
        The HTML document.
    """
    return page(
        "mapping.html",
        title=title,
        findings=findings,
        facts=facts,
        cells=cells,
        covered=covered,
        pictures=pictures,
        evaluation=evaluation,
        calibrations=calibrations or {},
        promises=promises or {},
        coverages={f"top {share:.0%}": share for share in SHARES[1:]},
    )


def integration_report(
    title: str,
    facts: Mapping[str, object],
    integration: Integration,
    effects: Sequence[FactorEffect],
    cells: Scatter,
    side_by_side: Sequence[Picture],
    pictures: Sequence[Picture],
    conditions: Sequence[str] = (),
) -> str:
    """Write the report of an integration.

    Args:
        title: Heading.
        facts: What was evaluated and how: name -> value, in order.
        integration: Metrics of the embeddings.
        effects: What factors do.
        cells: The evaluated cells as dots, a panel for each embedding.
        side_by_side: Each embedding by label and by batch key.
        pictures: Shown in order.
        conditions: Columns within which batches were compared.

    Returns:
        The HTML document.
    """
    return page(
        "integration.html",
        title=title,
        facts=facts,
        scores=sorted(integration.scores, key=lambda scores: -(scores.total or 0)),
        metrics=METRICS,
        averages=AVERAGES,
        groups=_defined(integration),
        best={name: _best(integration, name) for name in METRICS},
        effects=[(effect, sentences(effect)) for effect in effects],
        sizes=SIZES,
        folds=FOLDS,
        cells=cells,
        side_by_side=side_by_side,
        pictures=pictures,
        conditions=conditions,
    )


def _defined(integration: Integration) -> dict[str, list[str]]:
    """The columns of the table under their headings: the metrics that an embedding has."""
    scores = [each.to_dict() for each in integration.scores]
    shown = {
        title: [name for name in names if any(each[name] is not None for each in scores)]
        for title, names in _GROUPS.items()
    }
    return {title: names for title, names in shown.items() if names}


def _best(integration: Integration, name: str) -> float | None:
    """The largest value among several embeddings."""
    values = [value for value in (each.to_dict()[name] for each in integration.scores) if value is not None]
    return max(values) if len(values) > 1 else None


def gate_report(title: str, facts: Mapping[str, object], report: GateReport, reasons: Mapping[str, str]) -> str:
    """Write the report of a gate.

    Args:
        title: Heading.
        facts: What was compared: name -> value, in order.
        report: The checks.
        reasons: Name of a threshold -> what it limits, and why.

    Returns:
        The HTML document.
    """
    return page("gate.html", title=title, facts=facts, report=report, reasons=reasons)
