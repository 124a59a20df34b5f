"""The result of `map`: labels of all query cells, and their evaluation if true labels are known."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from scgpt_ray.config import MapSettings
from scgpt_ray.evaluation.labels.baseline import BASELINE, Labelling
from scgpt_ray.evaluation.labels.label_evaluation import LabelEvaluation, evaluate
from scgpt_ray.evaluation.labels.metrics import Labels, LabelScores
from scgpt_ray.mapping.calibration import Calibration
from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.mapping.promise import Promise
from scgpt_ray.mapping.votes import CellCounts
from scgpt_ray.pipelines.baseline import Baseline
from scgpt_ray.pipelines.evidence import Evidence
from scgpt_ray.pipelines.overview import Overview
from scgpt_ray.pipelines.prediction_table import confidences, voted
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.pipelines.second_draw import SecondDraw
from scgpt_ray.records import Quarantine
from scgpt_ray.storage import Folder

QUERY_H5AD, METRICS, REPORT = "query.h5ad", "metrics.json", "report.html"
CALIBRATION, UMAP = "calibration.json", "umap.png"

QUARANTINE = f"embeddings/{Quarantine.file}"

_LABELS_SHOWN = 6


@dataclass(frozen=True, eq=False)
class MappingResult:
    """Result of a mapping.

    Attributes:
        output: Folder of the files.
        parts: Query and predictions.
        overview: Of both; the first label column is the one that is evaluated.
        evaluation: Agreement of its sample with the truth in the first column, where a truth column is named.
        baseline: What it is compared with, or why with nothing; None where nothing is evaluated.
        calibrations: Label column -> its calibration, where there is one.
        evidence: What speaks for or against the labels.
        promises: Calibrated label column -> what is promised of the query's labels.
        unknown_terms: Terms that the Cell Ontology lacks -> neighbours that voted for them.
        drawn_again: Cells that were cut, and how far other seeds move them.
    """

    output: Folder
    parts: QueryParts
    overview: Overview
    evaluation: LabelEvaluation | None
    baseline: Baseline | str | None
    calibrations: Mapping[str, Calibration]
    promises: Mapping[str, Promise]
    evidence: Evidence
    unknown_terms: dict[str, int]
    drawn_again: SecondDraw

    @classmethod
    def of(
        cls,
        settings: MapSettings,
        parts: QueryParts,
        overview: Overview,
        calibrations: Mapping[str, Calibration],
        promises: Mapping[str, Promise],
        reference_cells: CellCounts,
        evidence: Evidence,
        truth: Labels | None,
        baseline: Baseline | str | None,
        unknown_terms: dict[str, int],
        drawn_again: SecondDraw,
    ) -> "MappingResult":
        """Count the labels, and evaluate them if true labels are known.

        Args:
            settings: Settings of the mapping.
            parts: Query and its committed predictions.
            overview: Of both.
            calibrations: Those that were applied.
            promises: What they promise.
            reference_cells: Cells by label of the first column.
            evidence: What speaks for or against the labels.
            truth: True label of each cell of the sample in the first column, or None.
            baseline: What to compare with on the same truth, or why there is nothing.
            unknown_terms: As the attribute.
            drawn_again: As the attribute.

        Raises:
            InputError: If no cell has a true label.
        """
        evaluation = None
        if truth is not None:
            others = {BASELINE: (baseline.labels, baseline.share)} if isinstance(baseline, Baseline) else {}
            evaluation = _evaluated(overview, truth, reference_cells, others)
        return cls(
            Folder.at(settings.output),
            parts,
            overview,
            evaluation,
            baseline,
            calibrations,
            promises,
            evidence,
            unknown_terms,
            drawn_again,
        )

    @cached_property
    def predictions(self) -> pa.Table:
        """All predictions, one row per query cell, as `predictions_of` gives them; read when they are asked for."""
        return self.parts.whole()

    @property
    def labels(self) -> dict[str, dict[str, int]]:
        """Label column -> label -> cells, most first."""
        return self.overview.labels

    @property
    def unknown(self) -> dict[str, dict[str, int]]:
        """Label column -> reason for `Unknown` -> cells, most first."""
        return self.overview.unknown

    @property
    def column(self) -> str:
        """The first label column."""
        return next(iter(self.labels))

    @property
    def scores(self) -> LabelScores | None:
        """Accuracy and other scores of the first label column; None without a truth column."""
        return self.evaluation.scores if self.evaluation else None

    @property
    def n_cells(self) -> int:
        """Number of query cells."""
        return self.overview.n_cells

    @property
    def n_quarantined(self) -> int:
        """Number of query cells that could not be read or embedded, and are not among the predictions."""
        return self.parts.manifest.n_quarantined

    @property
    def n_unknown(self) -> int:
        """Number of query cells that are `Unknown` in the first column."""
        return sum(self.unknown[self.column].values())

    @property
    def n_flagged(self) -> int:
        """Number of query cells with a label in the first column that are far, or whose label lacks its markers."""
        cells = self.overview.labelled(self.column)
        lacking = cells.index.isin([marked.label for marked in self.evidence.lacking(self.column)])
        return int(cells["far"].where(~lacking, cells["cells"]).sum())

    def sentence(self) -> str:
        """Cells, labels, and how many of them are uncertain or flagged."""
        n_labels = len(self.labels[self.column].keys() - {UNKNOWN})
        return (
            f"{self.n_cells:,} cells, {n_labels} labels of {self.column}; {self.n_unknown / self.n_cells:.1%} Unknown, "
            f"{self.n_uncertain / self.n_cells:.1%} uncertain, {self.n_flagged / self.n_cells:.1%} flagged"
        )

    @property
    def n_uncertain(self) -> int:
        """Number of query cells with a label in the first column that is more likely wrong than right, as they say."""
        return int(self.overview.labelled(self.column)["uncertain"].sum())

    def text(self) -> str:
        """Summary for the terminal."""
        most = list(self.labels[self.column].items())
        shown = ", ".join(f"{name} {count}" for name, count in most[:_LABELS_SHOWN])
        more = ", ..." if len(most) > _LABELS_SHOWN else ""
        lost = f"; {self.n_quarantined} cells are in {QUARANTINE}" if self.n_quarantined else ""
        expected = [f"{column}: {text}" for column, text in self.evidence.expected().items()]
        warned = [text for text in self.evidence.warnings() if text not in expected]
        lines = [*expected, *(f"warning: {text}" for text in warned), self.sentence()]
        lines += [f"{self.n_cells} cells mapped on {self.column} ({shown}{more}): {self.output.where(REPORT)}{lost}"]
        lines += [self.drawn_again.text()] if self.drawn_again.n_cut else []
        if self.evaluation is not None:
            lines += [
                self.evaluation.scores.table(),
                self.evaluation.comparison(),
                f"{BASELINE}: {self.baseline_text()}",
            ]
        lines += [f"{column}: {promise.text()}" for column, promise in self.promises.items()]
        return "\n".join(lines)

    def baseline_text(self) -> str:
        """Cells and genes of the baseline, or the reason why it was not computed."""
        return self.baseline.text() if isinstance(self.baseline, Baseline) else f"left out, {self.baseline}"

    def to_dict(self) -> dict[str, Any]:
        """The main metrics, for the JSON line on stdout."""
        main = ("accuracy", "macro_f1", "majority_accuracy", "n")
        scores = self.scores
        return {
            "output": self.output.uri,
            "n_cells": self.n_cells,
            "n_unknown": self.n_unknown,
            "n_quarantined": self.n_quarantined,
            "scores": {name: getattr(scores, name) for name in main} if scores else None,
            "n_uncertain": self.n_uncertain,
            "n_flagged": self.n_flagged,
            "warnings": self.evidence.warnings(),
            "accuracy_accepted": scores.accuracy_accepted if scores else None,
            "promises_withdrawn": [column for column, promise in self.promises.items() if promise.withdrawn],
        }

    def metrics(self) -> dict[str, Any]:
        """All metrics: the content of metrics.json."""
        evaluated: dict[str, Any] = {"scores": None}
        if self.evaluation:
            compared = self.baseline.to_dict() if isinstance(self.baseline, Baseline) else {"left_out": self.baseline}
            evaluated = self.evaluation.to_dict() | {"baseline": compared}
        calibration = {
            column: asdict(found.held_out) | {"one_group": asdict(found.one_group)}
            for column, found in self.calibrations.items()
        }
        return self.to_dict() | evaluated | {
            "sample": len(self.overview.rows),
            "labels": self.labels,
            "unknown": self.unknown,
            "calibration": calibration,
            "promises": {column: asdict(promise) for column, promise in self.promises.items()},
            "unknown_terms": self.unknown_terms,
            "second_draw": self.drawn_again.model_dump(exclude={"embeddings"}),
            "evidence": self.evidence.to_dict(),
        }  # fmt: skip

    def figures(self) -> dict[str, float]:
        """The metrics logged to MLflow."""
        figures: dict[str, float] = {"unknown": self.n_unknown / self.n_cells}
        if self.scores:
            figures |= {"accuracy": self.scores.accuracy, "macro_f1": self.scores.macro_f1}
        for method in self.evaluation.methods[1:] if self.evaluation else ():
            figures[f"{method.name}/accuracy"] = method.scores.accuracy
            figures[f"{method.name}/macro_f1"] = method.scores.macro_f1
        if self.column in self.calibrations:
            figures["calibration_error"] = self.calibrations[self.column].held_out.after.ece
        return figures

    def artifacts(self) -> list[str]:
        """Names of the output files logged to MLflow."""
        return [METRICS, REPORT, *(name for name in (CALIBRATION, UMAP) if self.output.has(name))]


def _evaluated(
    overview: Overview,
    truth: Labels,
    reference_cells: CellCounts,
    others: Mapping[str, Labelling],
) -> LabelEvaluation:
    column, cells = next(iter(overview.labels)), overview.sample
    rejected = cells[f"{column}_unknown"].is_valid().to_numpy()
    said, sure = voted(cells, column), confidences(cells, column)
    return evaluate(truth, said, sure, rejected, reference_cells[column], others)
