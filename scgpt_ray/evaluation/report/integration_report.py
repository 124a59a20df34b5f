"""The report of an integration: metrics side by side, verdicts on batch effects with their figures, pictures."""

from collections.abc import Mapping, Sequence
from html import escape

from scgpt_ray.evaluation.factors.effects import FactorEffect
from scgpt_ray.evaluation.factors.expression import ExpressionShift
from scgpt_ray.evaluation.factors.verdict import sentences
from scgpt_ray.evaluation.integration.metrics import METRICS, Integration
from scgpt_ray.evaluation.report.bars import factor_bars
from scgpt_ray.evaluation.report.page import Picture, bullets, fact_table, gallery, page, paragraph, section, table
from scgpt_ray.evaluation.report.scatter import Scatter, cells_section

_GENES_SHOWN = 10

_METRICS_SAY = (
    "AvgBIO is the mean of NMI, ARI and ASW label; AvgBATCH is the mean of graph connectivity and ASW batch. All run "
    "from 0 to 1 and larger is better, except PCR, the share of variance that batch keys explain."
)

_LIMITS = (
    "The embedding is zero-shot: the model was not fine-tuned on these labels or batch keys. Labels that were made by "
    "clustering the same cells favour whatever embedding resembles the one they were made from. A type I effect is a "
    "change of depth that all genes share, a type II effect changes single genes at equal depth; whether the latter is "
    "technical or biology, such as a treatment, the counts cannot tell. What varies together, such as donor and lane, "
    "cannot be told apart. Distances and shapes in a UMAP carry no meaning of their own."
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
    reasons = {
        f"{METRICS[metric]} of {scores.name}: {reason}"
        for scores in integration.scores
        for metric, reason in scores.undefined.items()
    }
    undefined = paragraph("Not defined here:") + bullets(sorted(reasons)) if reasons else ""
    sections = [
        section("Metrics", table(*_metric_rows(integration)) + paragraph(_METRICS_SAY) + undefined),
        cells_section(cells),
        section("Batch effects", factor_bars(effects) + "".join(_effect(effect) for effect in effects)),
        section("What was evaluated", fact_table(facts)),
        section("Pictures", gallery(pictures)) if pictures else "",
        section("Limits", paragraph(_LIMITS)),
    ]
    return page(title, "Integration evaluated by scgpt-ray", sections)


def _metric_rows(integration: Integration) -> tuple[list[str], list[list[str]]]:
    head = ["metric", *(scores.name for scores in integration.scores)]
    rows = [
        [shown, *(_number(getattr(scores, metric)) for scores in integration.scores)]
        for metric, shown in METRICS.items()
    ]
    return head, rows


def _effect(effect: FactorEffect) -> str:
    head = ["embedding", "variance: label", "beside it", "by label", "probe", "chance", "purity", "by chance"]
    rows = []
    for carried in effect.embeddings:
        variance, probe, purity = carried.variance, carried.probe, carried.purity
        shares = [f"{share:.1%}" for share in (variance.label, variance.factor, variance.interaction)]
        probed = (probe.score, probe.chance) if probe else (None, None)
        shared = (purity.share, purity.expected) if purity else (None, None)
        rows.append([carried.embedding, *shares, *map(_number, (*probed, *shared))])
    genes = table(*_gene_rows(effect.shift)) if effect.shift and effect.shift.driven else ""
    first, *others = sentences(effect)
    told = paragraph(first) + bullets(others)
    return f"<h3>{escape(effect.name)}</h3>{told}{table(head, rows)}{genes}"


def _gene_rows(shift: ExpressionShift) -> tuple[list[str], list[list[str]]]:
    rows = [
        [gene.gene, gene.level, f"{gene.effect:+.2f}", f"{gene.log2_fold:+.2f}", f"{gene.fdr:.1e}"]
        for gene in shift.driven[:_GENES_SHOWN]
    ]
    return ["gene at equal depth", "level", "effect (SD)", "log2 fold", "FDR"], rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
