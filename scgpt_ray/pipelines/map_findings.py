"""Makes what the report of a mapping says first."""

from scgpt_ray.evaluation.report.findings import Findings, LabelShare
from scgpt_ray.evaluation.report.marker_plot import MOST_LABELS, marker_dots
from scgpt_ray.evaluation.report.picture import Picture
from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.pipelines.evidence import Evidence
from scgpt_ray.pipelines.mapping_result import MappingResult
from scgpt_ray.pipelines.prediction_table import confidences

_MOST_SAMPLES = 6
"""Samples that get a column in the table of labels."""


def findings(mapped: MappingResult) -> Findings:
    """What is said first of a mapping."""
    column, evidence = mapped.column, mapped.evidence
    meaning = list(confidences(mapped.overview.sample, column))[-1]
    figures, by_sample = mapped.overview.by("label"), mapped.overview.by("sample")["cells"]
    pairs = mapped.overview.groups.set_index(["label", "sample"])["cells"]
    samples = list(by_sample.index) if 1 < len(by_sample) <= _MOST_SAMPLES else []
    marks = _marks(evidence)
    composition = []
    for label, cells in mapped.labels[column].items():
        own = figures.loc[label]
        composition.append(
            LabelShare(
                label,
                cells,
                cells / mapped.n_cells,
                None if label == UNKNOWN else float(own["confidence"] / cells),
                float(own["far"] / cells),
                marks.get(label, ""),
                tuple(float(pairs.get((label, name), 0) / by_sample[name]) for name in samples),
            )
        )
    return Findings(
        mapped.sentence(),
        evidence.warnings(),
        evidence.expected(),
        column,
        meaning,
        samples,
        composition,
        evidence.placement.text() if evidence.placement and not evidence.placement.is_elsewhere else "",
        _dots(evidence, column),
    )


def _marks(evidence: Evidence) -> dict[str, str]:
    if isinstance(evidence.markers, str):
        return {}
    return {
        marked.label: "absent" if marked.is_absent else f"{marked.support:.0%}"
        for marked in evidence.markers
        if marked.support is not None
    }


def _dots(evidence: Evidence, column: str) -> Picture | str:
    if isinstance(evidence.markers, str):
        return f"Markers were not looked at: {evidence.markers}."
    marked = [label for label in evidence.markers if label.genes]
    if not marked:
        return f"No gene marks a {column} of the reference that query cells were given."
    caption = (
        f"Genes that mark each {column} in the reference, in {sum(label.cells for label in evidence.markers):,} query "
        "cells by the label that they got. Size: share of the cells with a count; ring: the same of reference cells "
        "that have the label; colour: expression."
    )
    if len(marked) > MOST_LABELS:
        caption += f" The {MOST_LABELS} most frequent of {len(marked)} labels; metrics.json has all."
    return Picture(marker_dots(marked), caption)
