"""How well cells are rejected: those whose label the reference lacks, and not the others."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scgpt_ray.evaluation.labels.metrics import Labels, require_truth


@dataclass(frozen=True)
class LabelRejection:
    """Rejection of the cells of one true label."""

    label: str
    cells: int
    rejected: int
    in_reference: bool


@dataclass(frozen=True)
class RejectionScores:
    """Rejection over the cells with a true label."""

    known: int
    """Cells whose label the reference has."""
    known_rejected: int
    absent: int
    """Cells whose label the reference lacks, so that any label is wrong."""
    absent_rejected: int
    accepted_right: int
    """Cells that got their true label."""
    per_label: tuple[LabelRejection, ...]
    """One per true label, in alphabetical order."""

    @property
    def accepted(self) -> float:
        """Share of all cells that keep a label."""
        return self._n_accepted / (self.known + self.absent)

    @property
    def accuracy_accepted(self) -> float | None:
        """Share of right labels among the cells that keep one; None where no cell does."""
        return self.accepted_right / self._n_accepted if self._n_accepted else None

    @property
    def _n_accepted(self) -> int:
        return self.known + self.absent - self.known_rejected - self.absent_rejected

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        per_label = [asdict(score) for score in self.per_label]
        shares = {"accepted": self.accepted, "accuracy_accepted": self.accuracy_accepted}
        return asdict(self) | shares | {"per_label": per_label}

    def table(self) -> str:
        """The scores as text for a terminal, one line per true label."""
        width = max(len("true label"), *(len(score.label) + 1 for score in self.per_label))
        lines = [
            f"{score.label + ('' if score.in_reference else '*'):<{width}}  {score.cells:7,}  {score.rejected:7,}"
            f"  {score.rejected / score.cells:6.1%}"
            for score in self.per_label
        ]
        accuracy = "" if self.accuracy_accepted is None else f", {self.accuracy_accepted:.1%} of these right"
        notes = [
            f"{self.known_rejected:,} of {self.known:,} cells that the reference can name were rejected, "
            f"{self.absent_rejected:,} of {self.absent:,} others (*)",
            f"{self.accepted:.1%} of the cells keep a label{accuracy}",
        ]
        return "\n".join([f"{'true label':<{width}}    cells  Unknown   share", *lines, *notes])


def score_rejection(
    truth: Labels, predicted: Labels, rejected: npt.NDArray[np.bool_], reference_labels: Collection[str]
) -> RejectionScores:
    """Count the rejected cells.

    Args:
        truth: True label per cell, [n]; cells without one are left out.
        predicted: Predicted label per cell, [n]; not read where rejected.
        rejected: bool [n].
        reference_labels: Labels that could be predicted.

    Raises:
        InputError: If no cell has a true label.
    """
    evaluated = require_truth(truth)
    true_N = np.array([str(label) for label, kept in zip(truth, evaluated, strict=True) if kept], object)
    predicted_N, rejected_N = np.asarray(predicted, object)[evaluated], np.asarray(rejected, bool)[evaluated]
    known_N = np.isin(true_N, sorted(reference_labels))
    return RejectionScores(
        known=int(known_N.sum()),
        known_rejected=int((known_N & rejected_N).sum()),
        absent=int((~known_N).sum()),
        absent_rejected=int((~known_N & rejected_N).sum()),
        accepted_right=int((~rejected_N & (true_N == predicted_N)).sum()),
        per_label=tuple(
            LabelRejection(
                label, int((true_N == label).sum()), int(rejected_N[true_N == label].sum()), label in reference_labels
            )
            for label in sorted(set(true_N))
        ),
    )
