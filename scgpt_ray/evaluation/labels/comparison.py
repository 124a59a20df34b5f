"""A mapping compared with baselines on the same cells."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from scgpt_ray.evaluation.labels.metrics import Labels, has_truth, score_labels
from scgpt_ray.evaluation.labels.selective_accuracy import SHARES, selective_accuracy

Labelling: TypeAlias = tuple[Labels, npt.NDArray[np.floating]]
"""Predicted label and confidence of each cell, [n] each."""


@dataclass(frozen=True)
class MethodScore:
    """One way to label the cells; fractions of 1."""

    name: str
    accuracy: float
    macro_f1: float
    """Over the labels that are true or predicted, as scikit-learn's default."""
    macro_f1_true_labels: float
    accuracy_at: dict[str, float]
    """Share of the cells, the surest -> their accuracy."""
    area: float
    """Under the curve of accuracy over the share of the cells."""


@dataclass(frozen=True)
class Comparison:
    """Several ways to label the same cells."""

    methods: tuple[MethodScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Name of a method -> its scores, as plain values for JSON."""
        return {method.name: asdict(method) for method in self.methods}

    def table(self) -> str:
        """The scores as text for a terminal, one line per method."""
        width = max(len("method"), *(len(method.name) for method in self.methods))
        heads = "".join(f"  acc@{share:.0%}" for share in SHARES[1:])
        lines = [
            f"{method.name:<{width}}  {method.accuracy:8.3f}  {method.macro_f1:8.3f}"
            + "".join(f"  {method.accuracy_at[f'{share:g}']:7.3f}" for share in SHARES[1:])
            + f"  {method.area:5.3f}"
            for method in self.methods
        ]
        return "\n".join([f"{'method':<{width}}  accuracy  macro-F1{heads}   area", *lines])


def compare(
    truth: Labels,
    methods: Mapping[str, Labelling],
    reference_labels: Collection[str],
) -> Comparison:
    """Score each method over the cells whose truth is known.

    Args:
        truth: True label per cell, [n].
        methods: Name -> its labels and confidences, in the order of the table.
        reference_labels: Labels that could be predicted.

    Raises:
        InputError: If no cell has a true label.
    """
    evaluated = has_truth(truth)
    true_N = np.asarray(truth, object)[evaluated]
    found = []
    for name, (predicted, confidence) in methods.items():
        scores = score_labels(truth, predicted, confidence, reference_labels)
        right_N = np.asarray(np.asarray(predicted, object)[evaluated] == true_N, bool)
        curve = selective_accuracy(np.asarray(confidence)[evaluated], right_N)
        at = {f"{share:g}": curve.at(share) for share in SHARES}
        f1 = scores.macro_f1, scores.macro_f1_true_labels
        found.append(MethodScore(name, scores.accuracy, *f1, at, curve.area))
    return Comparison(tuple(found))
