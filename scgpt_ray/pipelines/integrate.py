"""Embeddings of the same cells -> integration metrics, effects of factors, pictures, report."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.source import Source
from scgpt_ray.config import IntegrateSettings, TrackingSettings
from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.components import N_COMPONENTS, hvg_pca, require_counts, variable_components
from scgpt_ray.evaluation.factors.effects import Factor, Replicates, explain_factors
from scgpt_ray.evaluation.integration.metrics import Integration, compare_embeddings
from scgpt_ray.evaluation.sample import Selection, select_cells, strata_of
from scgpt_ray.pipelines.embedding_sets import ComparedCells, compared_cells
from scgpt_ray.pipelines.integration_result import (
    METRICS,
    REPORT,
    UMAP,
    UMAP_BATCH,
    IntegrationResult,
    write_integration,
)
from scgpt_ray.pipelines.raw_counts import Counts, embedded_atlas, named_atlas, read_counts
from scgpt_ray.progress import Stage
from scgpt_ray.records import Plan
from scgpt_ray.schema import JOINID, OBS_ID, Float32Matrix
from scgpt_ray.storage import Folder
from scgpt_ray.tracking import Input, Tracker

logger = logging.getLogger(__name__)

BASELINE = "HVG + PCA"
"""Name of the baseline among the embeddings."""

REPLICATE_COLUMNS = (
    "donor_id", "donor", "individual", "patient_id", "patient", "subject_id", "subject", "sample_id", "sample"
)  # fmt: skip
"""Columns of replicates by default, the first that is there; donors come before samples, for they may have several."""

_NO_LABEL = "all cells"


def integrate(settings: IntegrateSettings) -> IntegrationResult:
    """Evaluate how well embeddings separate labels and mix batches, and which factors have effects.

    Raises:
        InputError: If the embeddings are not finite or not of the same cells, a column is missing, there is only one
            batch key, or the output cannot be written.
    """
    output = Folder.at(settings.output)
    columns = [*settings.factor_columns, *settings.condition_columns]
    needed = [settings.label_column, settings.batch_column, *columns, settings.replicate_column]
    cells = compared_cells(
        tuple(settings.embeddings),
        [column for column in needed if column],
        () if settings.replicate_column else REPLICATE_COLUMNS,
    )
    selection = _selected(settings, cells)
    evaluated = cells.table(selection.rows)
    labels = [_NO_LABEL] * len(evaluated)
    if settings.label_column:
        labels = [str(value) for value in evaluated[settings.label_column].to_pylist()]
    batch_keys = [str(value) for value in evaluated[settings.batch_column].to_pylist()]
    factors = _factors(settings, evaluated, batch_keys)
    embeddings = {name: read(selection.rows) for name, read in cells.sets.items()}
    output.require_writable()
    replicates = _replicates(settings, evaluated)
    conditions = _conditions(settings, evaluated)
    stored, counts = _counts(settings, cells.folder, evaluated)
    asked = settings.model_dump(mode="json", exclude={*TrackingSettings.model_fields})
    tracker = Tracker(
        "integrate",
        output,
        {"config": settings.model_dump()},
        request=asked,
        inputs=[Input("embeddings", place, asked, len(selection.rows)) for place in settings.embeddings],
        tracking=settings.tracking,
    )
    with tracker:
        known = counts if isinstance(counts, Counts) else None
        components_NC = _components(settings, stored, known)
        if components_NC is not None:
            embeddings[BASELINE] = components_NC
        baseline = BASELINE if BASELINE in embeddings else None
        with Stage(f"evaluate {len(embeddings)} embeddings of {len(labels):,} cells"):
            integration = compare_embeddings(
                embeddings,
                labels,
                batch_keys,
                seed=settings.seed,
                baseline=baseline,
                conditions=conditions,
            )
        with Stage(f"explain {len(factors)} factors"):
            effects = explain_factors(
                factors,
                embeddings,
                labels,
                counts_NG=known.counts_NG if known else None,
                genes_G=known.genes_G if known else None,
                replicates=replicates,
                seed=settings.seed,
                conditions=conditions,
            )
        integrated = IntegrationResult(
            output,
            selection,
            integration,
            effects,
            replicates,
            counts=known.uri if known else None,
            no_counts=None if known else str(counts),
            baseline=_described(settings) if BASELINE in embeddings else None,
        )
        strata = strata_of(np.array(labels), np.array(batch_keys))
        values = {column: evaluated[column].to_pylist() for column in cells.column_names if column != JOINID}
        write_integration(integrated, settings, embeddings, values, strata)
        tracker.log_metrics(_logged(integration))
        for name in (METRICS, UMAP, UMAP_BATCH, REPORT):
            tracker.log_artifact(name)
    return integrated


def _selected(settings: IntegrateSettings, cells: ComparedCells) -> Selection:
    """The cells to evaluate; of all cells, only labels and batch keys are read."""
    return select_cells(
        cells.present,
        cells.numbered(settings.label_column) if settings.label_column else None,
        cells.numbered(settings.batch_column),
        max_cells=settings.max_cells,
        seed=settings.seed,
    )


def _factors(settings: IntegrateSettings, evaluated: pa.Table, batch_keys: list[str]) -> list[Factor]:
    """The factors; the batch column is the first."""
    factors = [Factor.of(settings.batch_column, batch_keys)]
    factors += [Factor.of(column, evaluated[column].to_pylist()) for column in settings.factor_columns]
    factors += [
        replace(Factor.of(column, evaluated[column].to_pylist()), is_condition=True)
        for column in settings.condition_columns
    ]
    return factors


def _conditions(settings: IntegrateSettings, evaluated: pa.Table) -> list[str] | None:
    """The combination of conditions of each evaluated cell; None without conditions."""
    if not settings.condition_columns:
        return None
    values = [evaluated[column].to_pylist() for column in settings.condition_columns]
    return [" / ".join(map(str, each)) for each in zip(*values, strict=True)]


def _replicates(settings: IntegrateSettings, evaluated: pa.Table) -> Replicates | None:
    """Replicates of the evaluated cells: by the named column, or by the first usual one with at least two of them."""
    if settings.replicate_column:
        return Replicates.of(settings.replicate_column, evaluated[settings.replicate_column].to_pylist())
    for column in REPLICATE_COLUMNS:
        if column in evaluated.column_names:
            replicates = Replicates.of(column, evaluated[column].to_pylist())
            if replicates.n > 1:
                logger.info("replicates: the %d values of %s (--replicate-column)", replicates.n, column)
                return replicates
    logger.warning(
        "no replicates: effects are about these cells only, for the embeddings carry none of %s (--replicate-column)",
        ", ".join(REPLICATE_COLUMNS),
    )
    return None


@Stage("read raw counts")
def _counts(settings: IntegrateSettings, embedded: Folder, evaluated: pa.Table) -> tuple[Counts | str, Counts | str]:
    """Values of the embedded layer and raw counts of the evaluated cells, or the reason why there are none.

    Raises:
        InputError: If an atlas or layer that the settings name does not exist.
    """
    plan = Plan.read(embedded)
    source = named_atlas(settings.counts, plan) if settings.counts else embedded_atlas(plan)
    if isinstance(source, str):
        if settings.counts_layer or settings.baseline_values == "stored":
            raise InputError(source, expected="the atlas that was embedded", remedy="name it with --counts")
        return _without(source), source
    stored = _read(source, evaluated)
    counts = stored
    if settings.counts_layer:
        counts = _read(named_atlas(source.uri, plan, settings.counts_layer), evaluated)
    try:
        require_counts(counts.counts_NG)
    except InputError as error:
        if settings.counts_layer or (settings.counts and settings.baseline_values != "stored"):
            raise
        return stored, _without(f"{source.uri}: {error.found}")
    return stored, counts


def _read(source: Source, evaluated: pa.Table) -> Counts:
    names = evaluated[OBS_ID].to_pylist() if OBS_ID in evaluated.column_names else None
    return read_counts(source, evaluated[JOINID].to_numpy(), names)


def _without(reason: str) -> str:
    logger.warning("without raw counts: %s", reason)
    return reason


@Stage("principal components")
def _components(settings: IntegrateSettings, stored: Counts | str, counts: Counts | None) -> Float32Matrix | None:
    """The baseline, float32 [n, c]; None without counts to make it of."""
    genes: dict[str, Any] = {"n_genes": settings.highly_variable, "flavor": settings.flavor, "seed": settings.seed}
    if settings.baseline_values == "stored":
        assert isinstance(stored, Counts), "required where they are asked for"
        return variable_components(stored.counts_NG, **genes)
    return hvg_pca(counts.counts_NG, **genes) if counts else None


def _described(settings: IntegrateSettings) -> str:
    """What the baseline was made of."""
    values = {"log1p": "log1p of counts per 10,000", "stored": "the values as stored"}[settings.baseline_values]
    genes = "all genes"
    if settings.highly_variable:
        genes = f"{settings.highly_variable:,} highly variable genes ({settings.flavor})"
    return f"{N_COMPONENTS} of {genes}, {values}"


def _logged(integration: Integration) -> dict[str, float]:
    """The metrics for MLflow."""
    return {
        f"{scores['name']}/{metric}": value
        for scores in integration.to_dict()["scores"]
        for metric, value in scores.items()
        if isinstance(value, float)
    }
