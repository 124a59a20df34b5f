"""The report of a mapping: scores, the cells, what was covered, pictures."""

from collections.abc import Mapping, Sequence
from html import escape

from scgpt_ray.evaluation.labels.comparison import Comparison
from scgpt_ray.evaluation.labels.label_evaluation import LabelEvaluation
from scgpt_ray.evaluation.labels.metrics import LabelScores
from scgpt_ray.evaluation.labels.rejection import RejectionScores
from scgpt_ray.evaluation.labels.selective_accuracy import SHARES
from scgpt_ray.evaluation.report.page import Picture, fact_table, gallery, page, paragraph, section, table, tiles
from scgpt_ray.evaluation.report.scatter import Scatter, cells_section
from scgpt_ray.mapping.calibration import Calibration

_LIMITS = (
    "Every label comes from the reference: a cell whose type the reference lacks gets the label of whatever is "
    "nearest, often with high confidence, unless it is rejected. {confidence} The embedding is zero-shot: the model "
    "was not fine-tuned on these labels or this query, and differences of technology, tissue or processing between "
    "reference and query can outweigh those between cell types. Distances and shapes in a UMAP carry no meaning of "
    "their own."
)
_UNCALIBRATED = (
    "Confidence is the share of the votes for the label, not the probability of being right; --calibrate-by gives that."
)
_CALIBRATED = (
    "Probabilities and thresholds were learnt on cells of the reference that were mapped with their own group left "
    "out: they hold for a query that differs from the reference as its groups differ from one another, and promise "
    "too much for one that differs more."
)
_SUREST = "Surest 90%: accuracy of the nine in ten cells with the highest confidence; others likewise."


def map_report(
    title: str,
    facts: Mapping[str, object],
    cells: Scatter | str,
    covered: str,
    pictures: Sequence[Picture],
    evaluation: LabelEvaluation | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
) -> str:
    """Write the report of a mapping.

    Args:
        title: Heading, such as `pbmc3k mapped onto pbmc_facs`.
        facts: What was mapped onto what and how: name -> value, in order; ints get thousands separators.
        cells: The query cells as dots, or why they are not drawn.
        covered: HTML of `coverage_bars`.
        pictures: Shown in order.
        evaluation: Where the truth is known.
        calibrations: Of the label columns that are calibrated.

    Returns:
        The HTML document.
    """
    limits = _LIMITS.format(confidence=_CALIBRATED if calibrations else _UNCALIBRATED)
    scores, labels = (
        _evaluated(evaluation) if evaluation else (paragraph("No true labels were given to evaluate by."), "")
    )
    sections = [
        section("Scores", scores),
        cells_section(cells),
        labels,
        section("Calibration", _calibration(calibrations)) if calibrations else "",
        section("What was mapped", fact_table(facts)),
        section("What the vocabulary covers", covered),
        section("Pictures", gallery(pictures)) if pictures else "",
        section("Limits", paragraph(limits)),
    ]
    return page(title, "Labels transferred by scgpt-ray", sections)


def _evaluated(evaluation: LabelEvaluation) -> tuple[str, str]:
    """The main figures, and what is behind them."""
    scores, rejection = evaluation.scores, evaluation.rejection
    figures = [
        (f"{scores.accuracy:.3f}", f"accuracy of {scores.n:,} cells"),
        (f"{scores.macro_f1:.3f}", f"macro-F1 over {len(scores.per_label)} labels"),
        (f"{scores.majority_accuracy:.3f}", "accuracy of always saying the most frequent true label"),
    ]
    if scores.absent_labels and scores.accuracy_in_reference is not None:
        text = f"accuracy of {scores.n_in_reference:,} cells the reference can name"
        figures.append((f"{scores.accuracy_in_reference:.3f}", text))
    if rejection.accepted < 1 and rejection.accuracy_accepted is not None:
        figures.append((f"{rejection.accuracy_accepted:.3f}", f"accuracy of the {rejection.accepted:.1%} not rejected"))
    return tiles(figures), "\n".join(
        [
            section("By label", _by_label(scores, rejection) + _notes(scores)),
            section("Beside a baseline", _compared(evaluation.comparison) + f'<p class="faint">{_SUREST}</p>'),
        ]
    )


def _by_label(scores: LabelScores, rejection: RejectionScores) -> str:
    rejected = {label.label: label.rejected for label in rejection.per_label}
    return table(
        ("true label", "cells", "precision", "recall", "F1", "Unknown"),
        (
            (f"{score.label}{'' if score.in_reference else ' *'}", f"{score.support:,}", f"{score.precision:.3f}",
             f"{score.recall:.3f}", f"{score.f1:.3f}", f"{rejected[score.label]:,}")
            for score in scores.per_label
        ),
    )  # fmt: skip


def _compared(comparison: Comparison) -> str:
    at = SHARES[1:]
    return table(
        ("method", "accuracy", "macro-F1", *(f"surest {share:.0%}" for share in at)),
        (
            (method.name, f"{method.accuracy:.3f}", f"{method.macro_f1:.3f}",
             *(f"{method.accuracy_at[f'{share:g}']:.3f}" for share in at))
            for method in comparison.methods
        ),
    )  # fmt: skip


def _calibration(calibrations: Mapping[str, Calibration]) -> str:
    """What calibration did to cells of the reference whose group it had not seen."""
    told = {column: calibration.held_out for column, calibration in calibrations.items()}
    return table(
        ("label column", "cells", "groups", "accuracy", "error of the share", "error of the probability", "kept",
         "wrong among the kept"),
        (
            (column, f"{held.cells:,}", f"{held.groups:,}", f"{held.accuracy:.3f}", f"{held.before.ece:.3f}",
             f"{held.after.ece:.3f}", f"{held.accepted:.1%}",
             "" if held.error_accepted is None else f"{held.error_accepted:.1%}")
            for column, held in told.items()
        ),
    )  # fmt: skip


def _notes(scores: LabelScores) -> str:
    notes = ["Precision, recall and F1 are those of the vote, before any cell was rejected."]
    if scores.absent_labels:
        notes.append("* The reference lacks this label, so it could not be predicted.")
    if scores.n_without_truth:
        notes.append(f"{scores.n_without_truth:,} cells without a true label are left out.")
    if scores.confidence_right is not None and scores.confidence_wrong is not None:
        notes.append(
            f"Mean confidence is {scores.confidence_right:.2f} where the prediction is right and "
            f"{scores.confidence_wrong:.2f} where it is wrong."
        )
    return f'<p class="faint">{escape(" ".join(notes))}</p>'
