"""The report of a mapping: one HTML file without outside resources, for a light and a dark screen."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from scgpt_ray.evaluate.labels import LabelScores

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
    "Every label comes from the reference: a cell whose type the reference lacks gets the label of "
    "whatever is nearest, often with high confidence. Confidence is the share of the neighbours that agree, "
    "not the probability of being right. The embedding is zero-shot: the model was not fine-tuned on these "
    "labels or this query, and differences of technology, tissue or processing between reference and query "
    "can outweigh those between cell types. Distances and shapes in a UMAP carry no meaning of their own."
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
    scores: LabelScores | None = None,
) -> str:
    """Write the report of a mapping.

    Args:
        title: Heading, such as `pbmc3k mapped onto pbmc_facs`.
        facts: What was mapped onto what and how: name -> value, in order; ints get thousands separators.
        pictures: Shown in order.
        scores: Where the truth is known.

    Returns:
        The HTML document.
    """
    sections = [
        *(_scores(scores) if scores else [_section("Scores", _paragraph("No true labels were given to judge by."))]),
        _section("What was mapped", f'<div class="card"><table class="facts">{_fact_rows(facts)}</table></div>'),
        _section("Pictures", "".join(_figure(picture) for picture in pictures)) if pictures else "",
        _section("Limits", _paragraph(_LIMITS)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><main><h1>{escape(title)}</h1><p class="faint">Labels transferred by scgpt-ray</p>\n'
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _scores(scores: LabelScores) -> list[str]:
    tiles = [
        (f"{scores.accuracy:.3f}", f"accuracy of {scores.n:,} cells"),
        (f"{scores.macro_f1:.3f}", f"macro-F1 over {len(scores.per_label)} labels"),
        (f"{scores.majority_accuracy:.3f}", "accuracy of always saying the most frequent label"),
    ]
    if scores.absent_labels and scores.accuracy_in_reference is not None:
        tiles.append(
            (
                f"{scores.accuracy_in_reference:.3f}",
                f"accuracy of {scores.n_in_reference:,} cells the reference can name",
            )
        )
    body = "".join(f'<div class="card tile"><b>{value}</b><span>{escape(text)}</span></div>' for value, text in tiles)
    return [
        _section("Scores", f'<div class="tiles">{body}</div>'),
        _section(
            "By label",
            f'<div class="card"><table class="scores">{_score_rows(scores)}</table></div>{_notes(scores)}',
        ),
    ]


def _score_rows(scores: LabelScores) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("true label", "cells", "precision", "recall", "F1"))
    rows = (
        f"<tr><td>{escape(score.label)}{'' if score.in_reference else ' *'}</td><td>{score.support:,}</td>"
        f"<td>{score.precision:.3f}</td><td>{score.recall:.3f}</td><td>{score.f1:.3f}</td></tr>"
        for score in scores.per_label
    )
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _notes(scores: LabelScores) -> str:
    notes: list[str] = []
    if scores.absent_labels:
        notes.append("* The reference lacks this label, so it could not be predicted.")
    if scores.n_without_truth:
        notes.append(f"{scores.n_without_truth:,} cells without a true label are left out.")
    if scores.confidence_right is not None and scores.confidence_wrong is not None:
        notes.append(
            f"Mean confidence is {scores.confidence_right:.2f} where the prediction is right and "
            f"{scores.confidence_wrong:.2f} where it is wrong."
        )
    return f'<p class="faint notes">{escape(" ".join(notes))}</p>' if notes else ""


def _fact_rows(facts: Mapping[str, object]) -> str:
    return "".join(_row(name, f"{fact:,}" if type(fact) is int else str(fact)) for name, fact in facts.items())


def _row(name: str, value: str) -> str:
    return f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"


def _figure(picture: Picture) -> str:
    source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    caption = escape(picture.caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _section(heading: str, body: str) -> str:
    return f"<h2>{escape(heading)}</h2>\n{body}"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
