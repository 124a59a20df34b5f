"""Scores of transferred labels against true labels, and of the rejection of those whose label the reference lacks."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import f1_score, precision_recall_fscore_support

from scgpt_ray.errors import InputError
from scgpt_ray.schema import NO_LABEL, Int64Array

Labels: TypeAlias = Sequence[str | None] | npt.NDArray[np.object_]


@dataclass(frozen=True)
class LabelScore:
    """Scores of one true label; fractions of 1."""

    label: str
    support: int
    """Cells with this true label."""
    precision: float
    recall: float
    f1: float
    in_reference: bool
    """Whether the reference has the label; otherwise it cannot be predicted."""
    rejected: int
    """Cells that are `Unknown`, whatever was predicted."""


@dataclass(frozen=True, eq=False)
class LabelScores:
    """Scores of a mapping over the cells with a true label; fractions of 1."""

    n: int
    """Number of evaluated cells."""
    n_without_truth: int
    """Cells left out because their true label is null, empty, `unknown` or `nan`."""
    accuracy: float
    macro_f1: float
    """Mean F1 over the labels that are true or predicted, equally weighted: scikit-learn's default, as published. A
    label that is only predicted has F1 0."""
    macro_f1_true_labels: float
    """Mean F1 over the true labels alone."""
    majority_accuracy: float
    """Accuracy of predicting the most frequent true label for every cell."""
    n_in_reference: int
    """Number of evaluated cells whose true label is in the reference."""
    accuracy_in_reference: float | None
    """Accuracy over those cells; None without any."""
    accepted_right: int
    """Cells that are not rejected, and have their true label."""
    absent_labels: tuple[str, ...]
    """True labels that the reference lacks."""
    confidence_right: float | None
    """Mean confidence of the right predictions; None without any."""
    confidence_wrong: float | None
    """Mean confidence of the wrong predictions; None without any."""
    per_label: tuple[LabelScore, ...]
    """Scores of each true label, in alphabetical order."""
    predicted_labels: tuple[str, ...]
    """Columns of `confusion`: the true labels, then labels that were only predicted."""
    confusion: Int64Array
    """Cells [true labels, predicted labels]."""

    @property
    def n_accepted(self) -> int:
        """Number of evaluated cells that are not rejected."""
        return self.n - sum(score.rejected for score in self.per_label)

    @property
    def accuracy_accepted(self) -> float | None:
        """Accuracy over those cells; None without any."""
        return self.accepted_right / self.n_accepted if self.n_accepted else None

    def rejection(self) -> dict[str, float | None]:
        """How many cells are rejected of the labels that the reference has, and of the others."""
        counts: dict[str, float | None] = {}
        for name, is_known in (("known", True), ("absent", False)):
            scores = [score for score in self.per_label if score.in_reference == is_known]
            counts |= {name: sum(score.support for score in scores)}
            counts |= {f"{name}_rejected": sum(score.rejected for score in scores)}
        return counts | {"accepted": self.n_accepted / self.n, "accuracy_accepted": self.accuracy_accepted}

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values for JSON; `confusion` as {truth: {predicted: cells}} without zeros."""
        plain = {name: value for name, value in vars(self).items() if name != "predicted_labels"}
        plain["absent_labels"] = list(self.absent_labels)
        plain["per_label"] = [vars(score) for score in self.per_label]
        plain["confusion"] = {
            score.label: {p: int(cells) for p, cells in zip(self.predicted_labels, row, strict=True) if cells}
            for score, row in zip(self.per_label, self.confusion, strict=True)
        }
        return plain

    def table(self) -> str:
        """The scores as text for a terminal, one line per true label."""
        table = pd.DataFrame(
            [(score.precision, score.recall, score.f1, score.support, score.rejected) for score in self.per_label],
            index=[score.label + ("" if score.in_reference else "*") for score in self.per_label],
            columns=pd.Index(["precision", "recall", "F1", "cells", "Unknown"], name="label"),
        )
        table.loc["macro / total"] = [np.nan, np.nan, self.macro_f1_true_labels, self.n, self.n - self.n_accepted]
        whole = dict.fromkeys(("cells", "Unknown"), "{:,.0f}".format)
        text = table.to_string(float_format="{:.3f}".format, formatters=whole, na_rep="")
        notes = [
            f"accuracy {self.accuracy:.3f} (the most frequent true label: {self.majority_accuracy:.3f}), "
            f"macro-F1 over true or predicted labels {self.macro_f1:.3f}"
        ]
        if self.absent_labels:
            notes.append("* not a label of the reference")
        if self.n_accepted < self.n:
            accuracy = "" if self.accuracy_accepted is None else f", {self.accuracy_accepted:.1%} of these right"
            notes.append(f"{self.n_accepted / self.n:.1%} of the cells keep a label{accuracy}")
        return "\n".join([text, *notes])


def score_labels(
    truth: Labels,
    predicted: Labels,
    confidence: npt.NDArray[np.floating],
    reference_labels: Collection[str],
    rejected: npt.NDArray[np.bool_] | None = None,
) -> LabelScores:
    """Compare predicted with true labels.

    Args:
        truth: True label per cell, [n]; null, empty, `unknown` and `nan` are left out and counted.
        predicted: Predicted label per cell, [n].
        confidence: Confidence of each prediction, [n].
        reference_labels: Labels that could be predicted.
        rejected: bool [n], cells that are `Unknown`; they are scored by their prediction all the same. None for none.

    Raises:
        InputError: If no cell has a true label.
    """
    evaluated = require_truth(truth)
    true_N, predicted_N = _texts(truth)[evaluated], _texts(predicted)[evaluated]
    right_N, confidence_N = true_N == predicted_N, np.asarray(confidence)[evaluated]
    names, support = np.unique(true_N, return_counts=True)
    known_N = np.isin(true_N, sorted(reference_labels))
    rejected_N = np.zeros(len(true_N), bool) if rejected is None else rejected[evaluated]
    columns = precision_recall_fscore_support(true_N, predicted_N, labels=names, zero_division=0)
    per_label = tuple(
        LabelScore(
            label=str(name),
            support=int(n),
            precision=float(precision),
            recall=float(recall),
            f1=float(f1),
            in_reference=name in reference_labels,
            rejected=int(rejected_N[true_N == name].sum()),
        )
        for name, precision, recall, f1, n in zip(names, *columns, strict=True)
    )
    predicted_labels = [*names.tolist(), *sorted(set(predicted_N) - set(names))]
    return LabelScores(
        n=len(true_N),
        n_without_truth=int((~evaluated).sum()),
        accuracy=float(right_N.mean()),
        macro_f1=float(f1_score(true_N, predicted_N, average="macro", zero_division=0)),
        macro_f1_true_labels=float(np.mean([score.f1 for score in per_label])),
        majority_accuracy=float(support.max() / len(true_N)),
        n_in_reference=int(known_N.sum()),
        accuracy_in_reference=_mean(right_N[known_N]),
        accepted_right=int((right_N & ~rejected_N).sum()),
        absent_labels=tuple(score.label for score in per_label if not score.in_reference),
        confidence_right=_mean(confidence_N[right_N]),
        confidence_wrong=_mean(confidence_N[~right_N]),
        per_label=per_label,
        predicted_labels=tuple(predicted_labels),
        confusion=pd.crosstab(true_N, predicted_N).reindex(columns=predicted_labels, fill_value=0).to_numpy(),
    )


def require_truth(truth: Labels) -> npt.NDArray[np.bool_]:
    """The cells with a true label, bool [n].

    Raises:
        InputError: If no cell has one.
    """
    evaluated = has_truth(truth)
    if not evaluated.any():
        raise InputError(
            f"none of {len(evaluated):,} query cells has a true label",
            expected="a --truth-column with labels",
            remedy="name another column, or omit --truth-column",
        )
    return evaluated


def has_truth(truth: Labels) -> npt.NDArray[np.bool_]:
    """The cells with a true label, bool [n]."""
    return np.array([text.strip().lower() not in NO_LABEL for text in _texts(truth)], bool)


def outcomes(truth: Labels, predicted: Labels) -> npt.NDArray[np.object_]:
    """Each cell is `right`, `wrong` or `no truth`, str [n]."""
    right_or_wrong = np.where(_texts(truth) == _texts(predicted), "right", "wrong")
    return np.where(has_truth(truth), right_or_wrong, "no truth").astype(object)


def _texts(labels: Labels) -> npt.NDArray[np.object_]:
    """Labels as str objects; nulls become empty strings."""
    return np.array(["" if label is None or label != label else str(label) for label in labels], object)


def _mean(values: npt.NDArray[np.bool_] | npt.NDArray[np.floating]) -> float | None:
    return float(np.mean(values)) if len(values) else None
