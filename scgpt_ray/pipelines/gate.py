"""Later embeddings against those of an earlier run: have they drifted?

Cells that both have, by content, must have the same vectors. The others are new: those of a data set that is not new
are compared with its earlier cells, those of a new data set with all earlier cells, and both within labels, so that
another composition is no drift. `evaluation/drift/thresholds.yaml` says what is compared and why.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.genes import GeneMap, coverage
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import DriftSettings, EmbedSettings, GateSettings
from scgpt_ray.evaluation.drift.checks import Drift, Tally
from scgpt_ray.evaluation.drift.measures import Cells
from scgpt_ray.evaluation.drift.thresholds import Thresholds, reasons
from scgpt_ray.evaluation.report.reports import gate_report
from scgpt_ray.identity import require_same_model
from scgpt_ray.index.recall import recall_at
from scgpt_ray.index.searcher import CHOSEN_K
from scgpt_ray.parts.manifest import GENES, require_manifest
from scgpt_ray.parts.parts import read_rows, require_content
from scgpt_ray.pipelines.executor import Engine
from scgpt_ray.pipelines.gate_cells import N_SAMPLE, Listed, Mask, label_column_of
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.pipelines.validate import stored_settings
from scgpt_ray.pipelines.verify import compare, verify_cells
from scgpt_ray.progress import Stage
from scgpt_ray.records import Check, GateReport, Plan
from scgpt_ray.schema import DATASET_ID, EMBEDDING, JOINID, Float32Matrix, Int64Array, matrix_array
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

REPORT = "report.html"
_RECALL_QUERIES = 500
_RUN = 128  # cells; of which four runs are read for coverage
_BOTH = 3


def gate(settings: GateSettings, engine: Engine) -> GateReport:
    """Compare embeddings with those of an earlier run, and write gate.json and report.html.

    Raises:
        InputError: If a folder holds no finished run, the models differ, or the atlas or checkpoint is gone.
    """
    report = compare_embeddings(
        settings, Folder.at(settings.against), Folder.at(settings.embeddings), engine, settings.index
    )
    write(report, Folder.at(settings.output), settings.against, settings.embeddings)
    return report


def compare_embeddings(
    settings: DriftSettings, earlier: Folder, later: Folder, engine: Engine, index: str | None
) -> GateReport:
    """Compare finished embeddings with earlier ones.

    Args:
        settings: What to compare.
        earlier: Folder of the earlier embeddings.
        later: Folder of the later ones.
        engine: Opens the executor that searches the index.
        index: Index of the earlier embeddings; None without.

    Raises:
        InputError: If a folder holds no finished run, the models differ, or the atlas or checkpoint is gone.
    """
    limits = Thresholds.load(settings.thresholds)
    before, after = require_manifest(earlier), require_manifest(later)
    require_same_model(later.uri, after.fingerprint.model, earlier.uri, before.fingerprint.model)
    for folder, manifest in ((earlier, before), (later, after)):
        require_content(folder, manifest)
    label_column = label_column_of(settings.label_column, before.obs_columns, after.obs_columns)
    asked = stored_settings(later, Plan.read(later), {})
    by_dataset = all(DATASET_ID in manifest.obs_columns for manifest in (before, after))
    comparison = Comparison(
        earlier=Listed.of(earlier, before, label_column, by_dataset=by_dataset),
        later=Listed.of(later, after, label_column, by_dataset=by_dataset),
        limits=limits,
    )
    checks = list(comparison.checks())
    if checks[0].status != "failed":
        checks += [*comparison.coverage(asked), comparison.verified(asked, settings.verified_cells)]
        if index is not None:
            reference = Reference.at(index)
            with engine.open(reference.index.n_cells) as executor:
                checks.append(comparison.recall(reference.on(executor)))
    return GateReport(
        status="gate_failed" if any(check.status == "failed" for check in checks) else "passed",
        earlier=before.fingerprint.digest,
        later=after.fingerprint.digest,
        label_column=label_column,
        n_new=int(comparison.is_new_N.sum()),
        n_carried=int(comparison.is_carried_N.sum()),
        checks=tuple(checks),
    )


@Stage("write the report")
def write(report: GateReport, output: Folder, earlier: str, later: str) -> None:
    """Write gate.json, and the report for people."""
    output.require_writable()
    facts = {
        "later embeddings": later,
        "earlier embeddings": earlier,
        "known labels": report.label_column or "none",
        "most cells of a sample": N_SAMPLE,
    }
    output.write(REPORT, gate_report("Drift of embeddings", facts, report, reasons()).encode())
    report.write(output)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sets of embeddings in one space.

    Attributes:
        earlier: The earlier one.
        later: The later one.
        limits: Thresholds.
    """

    earlier: Listed
    later: Listed
    limits: Thresholds

    @cached_property
    def is_new_N(self) -> Mask:
        """Later cells with an embedding whose content is new."""
        return self.later.lacks(self.earlier)

    @cached_property
    def is_carried_N(self) -> Mask:
        """Later cells with an embedding that the earlier set has as well."""
        return self.later.has_vector_N & ~self.is_new_N

    @cached_property
    def _new(self) -> Cells:
        # Numbered after the earlier cells.
        return self.later.cells(self.later.sample(self.is_new_N), first=len(self.earlier.content_N))

    @cached_property
    def _earlier(self) -> Cells:
        """A sample of the data sets that have new cells, and one of the others."""
        has_new_N = np.zeros(len(self.earlier.content_N), bool)
        for dataset in np.unique(self._new.dataset_N):
            has_new_N |= self.earlier.of_dataset(dataset)
        samples = [self.earlier.sample(each & self.earlier.has_vector_N) for each in (has_new_N, ~has_new_N)]
        return self.earlier.cells(np.sort(np.concatenate(samples)))

    def checks(self) -> Iterator[Check]:
        """All figures of the embeddings; only the first, if it fails."""
        carried = self.later.sample(self.is_carried_N)
        vectors_ND = self.later.vectors(carried)
        yield (norm := self._norm(np.concatenate([self._new.vectors_ND, vectors_ND])))
        if norm.status == "failed":
            return
        yield self._moved(carried, vectors_ND)
        for dataset in self.later.datasets:
            drift = self._drift(dataset, self.later.of_dataset(dataset))
            if drift.tally.cells:
                yield from drift.checks()

    def _norm(self, vectors_ND: Float32Matrix) -> Check:
        error_N = np.abs(np.linalg.norm(vectors_ND, axis=1) - 1)
        largest = float(np.where(np.isfinite(error_N), error_N, 1.0).max(initial=0.0))
        return Check("norm", None, largest, 0.0, self.limits.norm, len(self._new), 0, "largest, from unit length")

    def _moved(self, rows: Int64Array, vectors_ND: Float32Matrix) -> Check:
        """Cells of the same content with another vector."""
        if not len(rows):
            return Check("moved", None, None, 0.0, self.limits.moved, 0, 0, "no cell is carried over")
        order = np.argsort(self.earlier.content_N, kind="stable")
        there = order[np.searchsorted(self.earlier.content_N, self.later.content_N[rows], sorter=order)]
        stored, now = (
            pa.table({JOINID: rows, EMBEDDING: matrix_array(vectors)})
            for vectors in (self.earlier.vectors(there), vectors_ND)
        )
        found = compare(stored, now, self.later.manifest.fingerprint.model["precision"])
        note = "share of carried cells with another vector, by the tolerances of verify"
        return Check("moved", None, found.n_wrong / len(rows), 0.0, self.limits.moved, 0, len(rows), note)

    def _drift(self, dataset: str, is_here_N: Mask) -> Drift:
        was_here_N = self.earlier.of_dataset(dataset)
        is_known = int(was_here_N.sum()) >= self.limits.least_cells
        max_length = self.later.manifest.fingerprint.most_tokens
        # Empty cells have no content by which they are known: those beyond the earlier ones are new.
        new = self.later.tally(is_here_N & self.is_new_N, max_length)
        n_empty = [
            each.tally(here, max_length).empty for each, here in ((self.later, is_here_N), (self.earlier, was_here_N))
        ]
        empty = max(0, n_empty[0] - n_empty[1])
        return Drift(
            dataset=dataset,
            new=self._new[self._new.dataset_N == dataset],
            earlier=self._earlier,
            tally=Tally(new.cells + empty, empty, new.cut),
            tally_earlier=self.earlier.tally(was_here_N if is_known else np.ones(len(was_here_N), bool), max_length),
            is_known=is_known,
            limits=self.limits,
        )

    def coverage(self, asked: EmbedSettings) -> Iterator[Check]:
        """Counts of genes in the vocabulary: of new cells, and of the carried ones of the same data set."""
        source = locate(asked.atlas, asked, self.later.manifest.fingerprint.cells, identifiers=True)
        with self.later.folder.open(GENES) as stream:
            genes = GeneMap.from_table(pq.read_table(stream))
        for dataset in np.unique(self._new.dataset_N):
            is_here_N = self.later.of_dataset(dataset)
            shares, cells = [self.earlier.manifest.coverage["fraction"]], [0]
            for among_N in (self.is_carried_N, self.is_new_N):
                rows = _spread(np.flatnonzero(is_here_N & among_N))
                if len(rows) >= self.limits.least_cells:
                    shares.append(coverage(genes, *source.totals(self.later.joinids(rows))).fraction)
                    cells.append(len(rows))
            note = f"against {'its carried cells' if len(shares) == _BOTH else 'the whole earlier atlas'}"
            if (is_here_N & self.is_new_N).sum() < self.limits.least_cells:
                continue
            fall = shares[-2] - shares[-1]
            yield Check("coverage_fall", dataset, fall, 0.0, self.limits.coverage_fall, cells[-1], cells[-2], note)

    def recall(self, reference: Reference) -> Check:
        """Recall of an index for the new cells, below what was measured when it was built."""
        queries_QD = self._new.vectors_ND[:: max(1, len(self._new) // _RECALL_QUERIES)]
        if not len(queries_QD):
            return Check("recall_fall", None, None, 0.0, self.limits.recall_fall, 0, 0, "no new cells")
        k = min(CHOSEN_K, reference.index.n_cells)
        measured = recall_at(reference.neighbors(queries_QD, k)[0], reference.exact(queries_QD, k)[0])
        margin = 2 * float(np.sqrt(measured * (1 - measured) / len(queries_QD)))
        note = f"recall@{k} {measured:.4f} for new cells against {reference.index.recall_at_10:.4f} when it was built"
        fall = reference.index.recall_at_10 - measured
        queries = reference.index.recall_queries
        return Check("recall_fall", None, fall, margin, self.limits.recall_fall, len(queries_QD), queries, note)

    def verified(self, asked: EmbedSettings, n: int) -> Check:
        """New cells, or carried ones where none is new, embedded again."""
        among_N = self.is_new_N if self.is_new_N.any() else self.is_carried_N
        random = np.random.default_rng(0)
        rows = np.sort(random.permutation(np.flatnonzero(among_N))[:n])
        if not len(rows):
            return Check("not_verified", None, None, 0.0, self.limits.not_verified, 0, 0, "no cell has an embedding")
        stored = read_rows(self.later.folder, self.later.manifest, rows, [JOINID, EMBEDDING])
        found = verify_cells(asked, self.later.manifest.fingerprint, stored, random)
        share, note = found.n_wrong / len(rows), "share of cells that differ when they are embedded again"
        return Check("not_verified", None, share, 0.0, self.limits.not_verified, len(rows), 0, note)


def _spread(rows: Int64Array) -> Int64Array:
    """Some cells in four runs, which are quick to read."""
    starts = np.linspace(0, max(0, len(rows) - _RUN), 4).astype(int)
    return np.unique(np.concatenate([rows[start : start + _RUN] for start in starts]))
