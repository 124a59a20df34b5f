"""The reports of a mapping, an integration and a gate: one HTML file each, without outside resources.

Texts and layout are in the templates in `web/`, for a screen, light or dark, a phone, and paper.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scgpt_ray.evaluation.factors.effects import FactorEffect
from scgpt_ray.evaluation.factors.verdict import sentences
from scgpt_ray.evaluation.integration.metrics import METRICS, Integration
from scgpt_ray.evaluation.labels.label_evaluation import LabelEvaluation
from scgpt_ray.evaluation.labels.selective_accuracy import SHARES
from scgpt_ray.evaluation.report.findings import Findings
from scgpt_ray.evaluation.report.picture import Picture
from scgpt_ray.evaluation.report.scatter import Scatter
from scgpt_ray.mapping.calibration import Calibration
from scgpt_ray.mapping.promise import Promise
from scgpt_ray.records import GateReport


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
    return (
        _templates()
        .get_template("mapping.html")
        .render(
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
    )


def integration_report(
    title: str,
    facts: Mapping[str, object],
    integration: Integration,
    effects: Sequence[FactorEffect],
    cells: Scatter,
    pictures: Sequence[Picture],
) -> str:
    """Write the report of an integration.

    Args:
        title: Heading.
        facts: What was evaluated and how: name -> value, in order.
        integration: Metrics of the embeddings.
        effects: What factors do.
        cells: The evaluated cells as dots, a panel for each embedding.
        pictures: Shown in order.

    Returns:
        The HTML document.
    """
    return (
        _templates()
        .get_template("integration.html")
        .render(
            title=title,
            facts=facts,
            scores=integration.scores,
            metrics=METRICS,
            effects=[(effect, sentences(effect)) for effect in effects],
            cells=cells,
            pictures=pictures,
        )
    )


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
    return _templates().get_template("gate.html").render(title=title, facts=facts, report=report, reasons=reasons)


@cache
def _templates() -> Environment:
    loader = PackageLoader("scgpt_ray.evaluation.report", "web")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.policies["json.dumps_kwargs"] = {"sort_keys": False}  # Bokeh's JSON refers back to what came before
    templates.filters |= {
        "score": lambda value: "-" if value is None else f"{value:.3f}",
        "p_value": lambda value: "-" if value is None else f"{value:.2g}",
        "share": lambda value: "" if value is None else f"{value:.1%}",
        "figure": lambda value: "-" if value is None else f"{value:.3g}",
        "fact": lambda value: f"{value:,}" if type(value) is int else str(value),
    }
    return templates
