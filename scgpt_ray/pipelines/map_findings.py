"""Makes what the report of a mapping says first."""

from scgpt_ray.evaluation.markers import MarkedLabel
from scgpt_ray.evaluation.report.findings import ColumnFindings, Findings, LabelShare
from scgpt_ray.evaluation.report.marker_plot import MOST_LABELS, marker_dots
from scgpt_ray.evaluation.report.picture import Picture
from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.pipelines.mapping_result import MappingResult
from scgpt_ray.pipelines.prediction_table import confidences

_MOST_SAMPLES = 6
"""Samples that get a column in the table of labels."""


def findings(mapped: MappingResult) -> Findings:
    """What is said first of a mapping."""
    evidence = mapped.evidence
    samples = list(mapped.overview.by("sample", mapped.column).index)
    samples = samples if 1 < len(samples) <= _MOST_SAMPLES else []
    return Findings(
        mapped.sentence(),
        evidence.warnings(),
        evidence.expected(),
        samples,
        [_of_column(mapped, column, samples) for column in mapped.labels],
        evidence.placement.text() if evidence.placement and not evidence.placement.is_elsewhere else "",
    )


def _of_column(mapped: MappingResult, column: str, samples: list[str]) -> ColumnFindings:
    overview, evidence = mapped.overview, mapped.evidence
    meaning = list(confidences(overview.sample, column))[-1]
    figures, by_sample = overview.by("label", column), overview.by("sample", column)["cells"]
    pairs = overview.groups[column].set_index(["label", "sample"])["cells"]
    marks = {marked.label: _mark(marked) for marked in evidence.marked(column)}
    composition = []
    for label, cells in mapped.labels[column].items():
        own = figures.loc[label].to_dict()
        composition.append(
            LabelShare(
                label,
                cells,
                cells / mapped.n_cells,
                None if label == UNKNOWN else float(own["confidence"] / cells),
                None if evidence.placement is None else float(own["far"] / cells),
                marks.get(label, ""),
                tuple(float(pairs.get((label, name), 0) / by_sample[name]) for name in samples),
            )
        )
    return ColumnFindings(column, meaning, composition, _dots(evidence.markers[column], column))


def _mark(marked: MarkedLabel) -> str:
    if marked.support is None:
        return ""
    return "absent" if marked.is_absent else f"{marked.support:.0%}"


def _dots(found: list[MarkedLabel] | str, column: str) -> Picture | str:
    if isinstance(found, str):
        return f"Markers were not looked at: {found}."
    marked = [label for label in found if label.genes]
    if not marked:
        return f"No gene marks a {column} of the reference that query cells were given."
    caption = (
        f"Genes that mark each {column} in the reference, in {sum(label.cells for label in found):,} query cells by "
        "the label that they got. Size: share of the cells with a count; ring: the same of reference cells that have "
        "the label; colour: expression."
    )
    if len(marked) > MOST_LABELS:
        caption += f" The {MOST_LABELS} most frequent of {len(marked)} labels; metrics.json has all."
    return Picture(marker_dots(marked, column), caption)
