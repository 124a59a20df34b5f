"""Evaluation of a mapping against true labels, next to baselines on the same cells: all its figures.

Shapes: N query cells.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scgpt_ray.evaluation.labels.baseline import Labelling, majority
from scgpt_ray.evaluation.labels.metrics import Labels, LabelScores, require_truth, score_labels
from scgpt_ray.evaluation.labels.selective_accuracy import SHARES, SelectiveAccuracy, selective_accuracy
from scgpt_ray.mapping.calibrator import Reliability, reliability
from scgpt_ray.mapping.votes import CountOfValue

METHOD = "embeddings + kNN"


@dataclass(frozen=True, eq=False)
class Method:
    """One way to label the cells, and how right it is."""

    name: str
    scores: LabelScores
    selective_accuracy: SelectiveAccuracy

    def to_dict(self) -> dict[str, Any]:
        """The main scores as plain values for JSON."""
        main = ("accuracy", "macro_f1", "macro_f1_true_labels")
        curve = self.selective_accuracy
        scores = {name: getattr(self.scores, name) for name in main}
        return {**scores, "accuracy_at": curve.accuracy_at(), "area": curve.area}


@dataclass(frozen=True, eq=False)
class LabelEvaluation:
    """How right the labels are, and how right the rejections."""

    truth: Labels
    """True label of each cell, [N]."""
    methods: tuple[Method, ...]
    """The mapping, by its top labels, rejected or not; then baselines, the last the reference's majority class."""
    reliability: dict[str, Reliability]
    """By the meaning of each confidence."""

    @property
    def scores(self) -> LabelScores:
        """Of the mapping."""
        return self.methods[0].scores

    @property
    def selective_accuracy(self) -> SelectiveAccuracy:
        """Of the mapping."""
        return self.methods[0].selective_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "scores": self.scores.to_dict(),
            "rejection": self.scores.rejection(),
            "comparison": {method.name: method.to_dict() for method in self.methods},
            "selective_accuracy": self.selective_accuracy.to_dict(),
            "reliability": {meaning: asdict(curve) for meaning, curve in self.reliability.items()},
        }

    def comparison(self) -> str:
        """The methods as text for a terminal, one line each."""
        rows = {
            method.name: {"accuracy": method.scores.accuracy, "macro-F1": method.scores.macro_f1}
            | {f"acc@{share:.0%}": method.selective_accuracy.at(share) for share in SHARES[1:]}
            | {"area": method.selective_accuracy.area}
            for method in self.methods
        }
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="method")
        return str(table.to_string(float_format="{:.3f}".format))


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
    evaluated = require_truth(truth)
    true_N, reference_labels = np.asarray(truth, object), {name for name in reference_cells if name is not None}

    def right(labels: Labels) -> npt.NDArray[np.bool_]:
        return np.asarray(true_N == np.asarray(labels, object), bool)[evaluated]

    confidence = list(confidences.values())[-1]
    methods = {METHOD: (np.asarray(voted, object), confidence), **(baselines or {})}
    methods["majority class"] = majority(reference_cells, len(voted))
    return LabelEvaluation(
        truth,
        tuple(
            Method(
                name,
                score_labels(truth, labels, sure, reference_labels, rejected if name == METHOD else None),
                selective_accuracy(sure[evaluated], right(labels)),
            )
            for name, (labels, sure) in methods.items()
        ),
        {meaning: reliability(sure[evaluated], right(voted)) for meaning, sure in confidences.items()},
    )
