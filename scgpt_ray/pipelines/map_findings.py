"""Makes what the report of a mapping says first."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scgpt_ray.evaluation.markers import MarkedLabel
from scgpt_ray.evaluation.report.findings import ColumnFindings, Findings, LabelShare
from scgpt_ray.evaluation.report.marker_plot import MOST_LABELS, marker_dots
from scgpt_ray.evaluation.report.picture import Picture
from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.pipelines.map_defaults import sample_column
from scgpt_ray.pipelines.mapping_result import MappingResult
from scgpt_ray.pipelines.prediction_table import confidences, texts

_MOST_SAMPLES = 6
"""Samples that get a column in the table of labels."""


def findings(mapped: MappingResult) -> Findings:
    """What is said first of a mapping."""
    evidence, sample_Q = mapped.evidence, _samples(mapped)
    in_sample = {} if sample_Q is None else {name: sample_Q == name for name in sorted(set(sample_Q.tolist()) - {None})}
    if not 1 < len(in_sample) <= _MOST_SAMPLES:
        in_sample = {}
    return Findings(
        mapped.sentence(),
        evidence.warnings(),
        evidence.expected(),
        list(in_sample),
        [_of_column(mapped, column, list(in_sample.values())) for column in mapped.labels],
        evidence.placement.text() if evidence.placement and not evidence.placement.is_elsewhere else "",
    )


def _samples(mapped: MappingResult) -> npt.NDArray[np.object_] | None:
    sample = sample_column(mapped.parts.manifest.obs_columns)
    return None if sample is None else texts(mapped.parts.cells([sample])[sample])


def _of_column(mapped: MappingResult, column: str, in_sample: Sequence[npt.NDArray[np.bool_]]) -> ColumnFindings:
    labels_Q, evidence = texts(mapped.overview[column]), mapped.evidence
    meaning, confidence_Q = list(confidences(mapped.overview, column).items())[-1]
    marks = {marked.label: _mark(marked) for marked in evidence.marked(column)}
    composition = []
    for label, cells in mapped.labels[column].items():
        own_Q = labels_Q == label
        composition.append(
            LabelShare(
                label,
                cells,
                cells / mapped.n_cells,
                None if label == UNKNOWN else float(confidence_Q[own_Q].mean()),
                float(evidence.far_Q[own_Q].mean()),
                marks.get(label, ""),
                tuple(float(own_Q[member_Q].mean()) for member_Q in in_sample),
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
