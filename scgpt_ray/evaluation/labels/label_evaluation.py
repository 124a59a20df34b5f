"""Evaluation of a mapping against true labels: all its figures.

Shapes: N query cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scgpt_ray.evaluation.labels.baseline import majority
from scgpt_ray.evaluation.labels.comparison import Comparison, Labelling, compare
from scgpt_ray.evaluation.labels.metrics import Labels, LabelScores, has_truth, score_labels
from scgpt_ray.evaluation.labels.rejection import RejectionScores, score_rejection
from scgpt_ray.evaluation.labels.selective_accuracy import CoverageCurve, coverage_curve
from scgpt_ray.mapping.ballot import CountOfValue
from scgpt_ray.mapping.reliability import Reliability, reliability

METHOD = "scGPT + kNN"


@dataclass(frozen=True, eq=False)
class LabelEvaluation:
    """How right the labels are, and how right the rejections."""

    truth: Labels
    """True label of each cell, [N]."""
    scores: LabelScores
    """Of the top labels, rejected or not."""
    rejection: RejectionScores
    comparison: Comparison
    """With calling every cell by the reference's most frequent label, and with other baselines."""
    coverage: CoverageCurve
    reliability: dict[str, Reliability]
    """By the meaning of each confidence."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "scores": self.scores.to_dict(),
            "rejection": self.rejection.to_dict(),
            "comparison": self.comparison.to_dict(),
            "coverage": self.coverage.to_dict(),
            "reliability": {meaning: curve.to_dict() for meaning, curve in self.reliability.items()},
        }


def evaluate(
    truth: Labels,
    voted: Labels,
    confidences: Mapping[str, npt.NDArray[np.floating]],
    rejected: npt.NDArray[np.bool_],
    reference_cells: CountOfValue,
    baselines: Mapping[str, Labelling] | None = None,
) -> LabelEvaluation:
    """Evaluate a mapping.

    Args:
        truth: True label of each cell, [N]; those without one are left out.
        voted: Top label, [N], rejected or not.
        confidences: Meaning -> confidence of each cell, [N]; the last of them ranks the cells.
        rejected: bool [N], where the label is Unknown.
        reference_cells: Label -> cells of the reference.
        baselines: Name -> labels and confidences of the same cells.

    Raises:
        InputError: If the truth of no cell is known.
    """
    reference_labels = {name for name in reference_cells if name is not None}
    confidence = list(confidences.values())[-1]
    methods: dict[str, Labelling] = {METHOD: (voted, confidence), **(baselines or {})}
    methods["majority class"] = majority(reference_cells, len(voted))
    scores = score_labels(truth, voted, confidence, reference_labels)
    evaluated = has_truth(truth)
    right = np.asarray(np.asarray(truth, object) == np.asarray(voted, object), bool)[evaluated]
    return LabelEvaluation(
        truth,
        scores,
        score_rejection(truth, voted, rejected, reference_labels),
        compare(truth, methods, reference_labels),
        coverage_curve(confidence[evaluated], right),
        {meaning: reliability(values[evaluated], right) for meaning, values in confidences.items()},
    )
