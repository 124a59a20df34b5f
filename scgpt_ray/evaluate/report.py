"""The report of a run: one HTML file without outside resources, for a light and a dark screen."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from scgpt_ray.evaluate.comparison import Comparison
from scgpt_ray.evaluate.coverage import COVERAGES
from scgpt_ray.evaluate.judgement import Judgement
from scgpt_ray.evaluate.labels import LabelScores
from scgpt_ray.evaluate.rejection import RejectionScores
from scgpt_ray.mapping.calibration import Calibration

_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1f2430; --faint: #667085; --line: #e4e7ec; --page: #f6f7f9; --card: #fff; --accent: #2f7fc9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8ec; --faint: #98a2b3; --line: #323843; --page: #14171c; --card: #1c2027; --accent: #6fb1ee;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 36px 0 12px; }
p { margin: 0 0 10px; max-width: 72ch; }
.faint { color: var(--faint); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; }
.tile { padding: 14px 18px; }
.tile b { display: block; font-size: 25px; line-height: 1.25; color: var(--accent); }
.tile span { display: block; color: var(--faint); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 18px; text-align: left; vertical-align: top; }
tr + tr > *, tbody > tr > * { border-top: 1px solid var(--line); }
.facts tr:first-child > * { border-top: 0; }
.facts th { width: 34%; color: var(--faint); font-weight: 500; }
.facts td { overflow-wrap: anywhere; }
.scores td + td, .scores th + th { text-align: right; white-space: nowrap; }
.scores thead th { color: var(--faint); font-weight: 500; }
.notes { margin-top: 10px; }
figure {
  margin: 0 0 18px; padding: 14px; background: #fff; border: 1px solid var(--line); border-radius: 10px;
}
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: #667085; font-size: 13px; padding: 10px 4px 0; }
@media print { body { background: #fff; } figure, .card { break-inside: avoid; } }
"""

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


@dataclass(frozen=True)
class Picture:
    """A PNG and the sentence under it."""

    png: bytes
    caption: str


def map_report(
    title: str,
    facts: Mapping[str, object],
    pictures: Sequence[Picture],
    judgement: Judgement | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
) -> str:
    """Write the report of a mapping.

    Args:
        title: Heading, such as `pbmc3k mapped onto pbmc_facs`.
        facts: What was mapped onto what and how: name -> value, in order; ints get thousands separators.
        pictures: Shown in order.
        judgement: Where the truth is known.
        calibrations: Of the label columns that are calibrated.

    Returns:
        The HTML document.
    """
    limits = _LIMITS.format(confidence=_CALIBRATED if calibrations else _UNCALIBRATED)
    sections = [
        *(
            _judged(judgement)
            if judgement
            else [section("Scores", paragraph("No true labels were given to judge by."))]
        ),
        section("Calibration", _calibration(calibrations)) if calibrations else "",
        section("What was mapped", f'<div class="card"><table class="facts">{fact_rows(facts)}</table></div>'),
        section("Pictures", "".join(figure(picture) for picture in pictures)) if pictures else "",
        section("Limits", paragraph(limits)),
    ]
    return page(title, "Labels transferred by scgpt-ray", sections)


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """The HTML document of a report, with its style and nothing from outside."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><main><h1>{escape(title)}</h1><p class="faint">{escape(subtitle)}</p>\n'
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _judged(judgement: Judgement) -> list[str]:
    scores, rejection = judgement.scores, judgement.rejection
    tiles = [
        (f"{scores.accuracy:.3f}", f"accuracy of {scores.n:,} cells"),
        (f"{scores.macro_f1:.3f}", f"macro-F1 over {len(scores.per_label)} labels"),
        (f"{scores.majority_accuracy:.3f}", "accuracy of always saying the most frequent true label"),
    ]
    if scores.absent_labels and scores.accuracy_in_reference is not None:
        text = f"accuracy of {scores.n_in_reference:,} cells the reference can name"
        tiles.append((f"{scores.accuracy_in_reference:.3f}", text))
    if rejection.coverage < 1 and rejection.accuracy_accepted is not None:
        tiles.append((f"{rejection.accuracy_accepted:.3f}", f"accuracy of the {rejection.coverage:.1%} not rejected"))
    body = "".join(f'<div class="card tile"><b>{value}</b><span>{escape(text)}</span></div>' for value, text in tiles)
    return [
        section("Scores", f'<div class="tiles">{body}</div>'),
        section("By label", _by_label(scores, rejection) + _notes(scores)),
        section("Beside a baseline", _compared(judgement.comparison)),
    ]


def _by_label(scores: LabelScores, rejection: RejectionScores) -> str:
    rejected = {label.label: label.rejected for label in rejection.per_label}
    return _table(
        ("true label", "cells", "precision", "recall", "F1", "Unknown"),
        (
            (f"{score.label}{'' if score.in_reference else ' *'}", f"{score.support:,}", f"{score.precision:.3f}",
             f"{score.recall:.3f}", f"{score.f1:.3f}", f"{rejected[score.label]:,}")
            for score in scores.per_label
        ),
    )  # fmt: skip


def _compared(comparison: Comparison) -> str:
    at = COVERAGES[1:]
    return _table(
        ("method", "accuracy", "macro-F1", *(f"accuracy of the surest {share:.0%}" for share in at)),
        (
            (method.name, f"{method.accuracy:.3f}", f"{method.macro_f1:.3f}",
             *(f"{method.accuracy_at[f'{share:g}']:.3f}" for share in at))
            for method in comparison.methods
        ),
    )  # fmt: skip


def _calibration(calibrations: Mapping[str, Calibration]) -> str:
    """What calibration did to cells of the reference whose group it had not seen."""
    told = {column: calibration.held_out for column, calibration in calibrations.items()}
    return _table(
        ("label column", "cells", "groups", "accuracy", "error of the share", "error of the probability", "kept",
         "wrong among the kept"),
        (
            (column, f"{held.cells:,}", f"{held.groups:,}", f"{held.accuracy:.3f}", f"{held.before.ece:.3f}",
             f"{held.after.ece:.3f}", f"{held.coverage:.1%}",
             "" if held.error_accepted is None else f"{held.error_accepted:.1%}")
            for column, held in told.items()
        ),
    )  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>" for row in rows)
    return f'<div class="card"><table class="scores"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


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
    return f'<p class="faint notes">{escape(" ".join(notes))}</p>'


def fact_rows(facts: Mapping[str, object]) -> str:
    """Rows of a table of class `facts`; ints get thousands separators."""
    return "".join(_row(name, f"{fact:,}" if type(fact) is int else str(fact)) for name, fact in facts.items())


def _row(name: str, value: str) -> str:
    return f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"


def figure(picture: Picture) -> str:
    """A picture with its caption, the image in the page itself."""
    source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    caption = escape(picture.caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def section(heading: str, body: str) -> str:
    """HTML under a heading."""
    return f"<h2>{escape(heading)}</h2>\n{body}"


def paragraph(text: str) -> str:
    """Plain text as HTML."""
    return f"<p>{escape(text)}</p>"
