"""`map`: query cells -> embeddings -> neighbours in the reference -> votes -> labels and report."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

from scgpt_ray.config import CellSettings, ComputeSettings, EmbedSettings, MapSettings, TrackingSettings
from scgpt_ray.config.map import AUTO
from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.evaluation.labels.metrics import require_truth
from scgpt_ray.identity import require_same_model
from scgpt_ray.mapping.calibration import Calibration
from scgpt_ray.mapping.ontology import CellOntology
from scgpt_ray.mapping.prediction import PredictionRules
from scgpt_ray.mapping.promise import Promise
from scgpt_ray.mapping.shift import Position
from scgpt_ray.mapping.votes import CellCounts, VoteRules
from scgpt_ray.network.cell_encoder import CellEncoder, read_encoder
from scgpt_ray.pipelines.baseline import evaluate_baseline
from scgpt_ray.pipelines.calibrate import calibrations, query_positions
from scgpt_ray.pipelines.embed import run
from scgpt_ray.pipelines.embed_request import check
from scgpt_ray.pipelines.evidence import gather
from scgpt_ray.pipelines.executor import Engine
from scgpt_ray.pipelines.hub_index import INDEX_COPY, is_on_hub, share_index
from scgpt_ray.pipelines.labelled_cells import require_free
from scgpt_ray.pipelines.map_defaults import require_fitness, with_defaults
from scgpt_ray.pipelines.map_report import write_mapping
from scgpt_ray.pipelines.mapping_result import MappingResult
from scgpt_ray.pipelines.overview import Overview
from scgpt_ray.pipelines.prediction_table import output_name, texts
from scgpt_ray.pipelines.query_parts import PREDICTIONS, QueryParts
from scgpt_ray.pipelines.query_votes import QueryVotes
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.pipelines.second_draw import second_draw
from scgpt_ray.pipelines.training_overlap import training_overlap
from scgpt_ray.pipelines.truth import read_truth_map, translated, vocabulary_gap
from scgpt_ray.records import Fitness, IndexDescription, NeighborDistances
from scgpt_ray.schema import JOINID
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import TokenRules
from scgpt_ray.tracking import Input, Tracker

logger = logging.getLogger(__name__)

TERMS = "cell_type_ontology_term_id"
"""The obs column in which CELLxGENE has Cell Ontology terms."""


def map_query(settings: MapSettings, engine: Engine) -> MappingResult:
    """Map query cells onto an indexed reference.

    Embeddings of the query are written to `embeddings/` in the output folder, and predictions in parts of the same
    cells; both are resumed after a failure. Calibration and report are computed again by every call.

    Raises:
        InputError: If the input is invalid, or the index was made with another checkpoint.
        RunError: If the work failed; the same command resumes it.
    """
    output, reference = Folder.at(settings.output), Reference.at(settings.index)
    fitness = require_fitness(reference)
    lenient = settings.calibrate_by == AUTO and settings.target_error is settings.false_rejection is None
    settings = with_defaults(settings, reference.index, fitness)
    if settings.neighbor_filter is not None:  # some of the cells are farther apart than all are
        fitness = fitness.replace(distances=NeighborDistances(fitness.distances.held_out, (), ()))
    truth_map = read_truth_map(settings.truth_map)
    rules = prediction_rules(settings, reference.index)
    reference.require(settings.k, settings.exclude_same, settings.neighbor_filter)
    if rules.term_column:
        CellOntology()  # the workers', if it is installed
    request = embed_request(settings, reference.index, list(rules.columns))
    job = check(request, preferred=reference.index.fingerprint.model["precision"], count_gpus=engine.gpus)
    require_free(rules.columns, job.source.all_obs_columns(), settings.query)
    if settings.truth_column is not None:
        require_truth(texts(job.source.column(settings.truth_column)))
    warn_of_precision(job.settings.precision, reference.index)
    index = reference.index
    where = {*ComputeSettings.model_fields, *TrackingSettings.model_fields}
    tracker = Tracker(
        "map",
        output,
        {"config": settings.model_dump(), "index": index.request},
        request=[job.fingerprint.digest, settings.model_dump(mode="json", exclude=where)],
        inputs=[job.dataset("query"), Input("index", settings.index, index.request, index.n_cells)],
        network=settings.checkpoint,
        tags=job.tags(),
        tracking=settings.tracking,
    )
    with engine.open(job.n_cells, compute=settings) as executor, tracker:
        if is_on_hub(settings.index):
            reference = replace(reference, folder=share_index(reference.folder, output.folder(INDEX_COPY), executor))
        reference = reference.on(executor)
        cells = reference_cells(settings, reference, rules)
        calibrated = calibrations(settings, reference, rules, cells, lenient=lenient)
        manifest = job.done or run(job, executor, tracker)
        embedded = Folder.at(request.output)
        votes = QueryVotes(settings, reference, rules, cells, calibrated)
        parts = QueryParts(embedded, manifest, output.folder(PREDICTIONS), votes.request())
        unknown_terms = votes.commit(parts, executor)
        overview = Overview.of(parts, rules.columns, calibrated, fitness.distances, settings.k)
        drawn_again = second_draw(job, parts, overview, executor)
        positions = query_positions(settings, reference, rules, cells, calibrated, parts, overview)
        promises = _promises(job.checkpoint, reference, calibrated, positions)
        column = rules.columns[0]
        truth = baseline = vocabulary = None
        if settings.truth_column is not None:
            own = dict.fromkeys((JOINID, settings.truth_column, *settings.exclude_same))
            queries = parts.rows(overview.rows, list(own))
            truth = translated(texts(queries[settings.truth_column]), truth_map)
            share, vocabulary = vocabulary_gap(truth, cells[column])
            if share:
                baseline = evaluate_baseline(settings, reference, column, cells[column], embedded, queries, truth)
            else:
                truth = None  # nothing is right or wrong in words that the reference does not know
        evidence = gather(
            reference, fitness, rules.columns, parts, overview, settings.k,
            _trained(job.checkpoint, reference, fitness, column), vocabulary,
        )  # fmt: skip
        evidence.log()
        mapped = MappingResult.of(
            settings,
            parts,
            overview,
            calibrated,
            promises,
            cells,
            evidence,
            truth,
            baseline,
            unknown_terms,
            drawn_again,
        )
        write_mapping(mapped, settings, reference, job.source)
        tracker.log_metrics(mapped.figures())
        for name in mapped.artifacts():
            tracker.log_artifact(name)
    return mapped


def prediction_rules(settings: MapSettings, index: IndexDescription) -> PredictionRules:
    """The label columns to predict, and the rules of the vote.

    Raises:
        ConfigError: If the index lacks a column, or two output columns would have the same name.
    """
    columns = label_columns(settings, index)
    term_column = settings.term_column
    if term_column is None and TERMS in columns and not settings.without_terms:
        term_column = TERMS
    if term_column is not None and term_column not in columns:
        raise ConfigError(
            f"--term-column {term_column} is not among the labels to transfer",
            expected=f"one of {', '.join(columns)}",
            remedy="add it to --label-columns, or give --without-terms",
        )
    vote = VoteRules(settings.weighting, settings.balance_by)
    rules = PredictionRules(tuple(columns), vote, term_column, settings.term_share)
    _require(settings, index, rules.groups)
    return rules


def label_columns(settings: MapSettings, index: IndexDescription) -> list[str]:
    """The label columns to transfer.

    Raises:
        ConfigError: If the index lacks one of them, or a column of --exclude-same or --calibrate-by; or if two
            output columns would have the same name.
    """
    columns = list(dict.fromkeys(settings.label_columns))
    _require(settings, index, (*columns, *settings.excluded_columns))
    twice = [name for name in columns if output_name(name, [other for other in columns if other != name]) != name]
    if twice:
        raise ConfigError(
            f"label column {twice[0]} has the name of an output column of another",
            expected="label columns whose predictions have different names",
            remedy="leave it out of --label-columns",
        )
    return columns


def _require(settings: MapSettings, index: IndexDescription, columns: Iterable[str]) -> None:
    lacking = [name for name in columns if name not in index.label_columns]
    if lacking:
        raise _lacks(settings, index, ", ".join(lacking))


def _lacks(settings: MapSettings, index: IndexDescription, what: str) -> ConfigError:
    return ConfigError(
        f"{settings.index} keeps no column {what}",
        expected=f"one of {', '.join(index.label_columns) or 'none'}",
        remedy="build the index with --label-columns",
    )


def reference_cells(settings: MapSettings, reference: Reference, rules: PredictionRules) -> CellCounts:
    """Count reference cells that meet --neighbor-filter, by value of the first label column and of --balance-by.

    Raises:
        ReferenceSetError: If none of them has a label in the first column.
    """
    first = rules.columns[0]
    counts = {
        column: reference.cell_counts(column, settings.neighbor_filter)
        for column in dict.fromkeys((first, *rules.groups))
    }
    if not counts[first].keys() - {None}:
        raise ReferenceSetError(
            f"no cell of {settings.index} that may be a neighbour has a {first}",
            expected="labelled cells",
            remedy="change --neighbor-filter or --label-columns",
        )
    return counts


def embed_request(settings: MapSettings, index: IndexDescription, columns: list[str]) -> EmbedSettings:
    """Settings that embed the query with the model of the index: weights, vocabulary and token rules.

    The precision may differ, such as float32 on a laptop for an index made on GPUs in float16: rounding moves a vector
    far less than the distance to its nearest neighbours (jobs/README.md, "Map").

    Raises:
        ReferenceSetError: If the reference was embedded with another checkpoint.
        ConfigError: If two columns of the output would have the same name.
    """
    if "highly_variable" in index.fingerprint.cells:
        raise ReferenceSetError(
            f"{settings.index} holds embeddings of {index.fingerprint.cells['highly_variable']} highly variable genes",
            expected="a reference and a query with the same genes",
            remedy="embed all genes of the reference, from a file that has only those genes if need be",
        )
    space = index.fingerprint.model
    rules = TokenRules.of(space)
    assert settings.checkpoint is not None, "with_defaults has filled it in"
    pooling = space.get("pooling", "cls")
    mine = read_encoder(settings.checkpoint).identity(rules, space["precision"], pooling)
    require_same_model(settings.checkpoint, mine, settings.index, space)
    shared = {*CellSettings.model_fields, *ComputeSettings.model_fields}
    return EmbedSettings.of(
        settings.model_dump(include=shared)
        | {
            "atlas": settings.query,
            "checkpoint": settings.checkpoint,
            "output": Folder.at(settings.output).folder("embeddings").uri,
            "obs_columns": _carried(settings, columns),
            "precision": settings.precision,
            "pooling": pooling,
        }
        | asdict(rules)
    )


def warn_of_precision(precision: str, index: IndexDescription) -> None:
    """Warn if the query is embedded in another precision than the reference."""
    of_index = index.fingerprint.model["precision"]
    if precision != of_index:
        logger.warning(
            "the query is embedded in %s, the reference was in %s: cosines differ by rounding", precision, of_index
        )


def _carried(settings: MapSettings, columns: list[str]) -> tuple[str, ...]:
    """The obs columns of the query that are needed, each under a separate name among the predictions."""
    truth = (settings.truth_column,) if settings.truth_column else ()
    carried = tuple(dict.fromkeys((*settings.obs_columns, *truth, *settings.exclude_same)))
    twice = [name for name, count in Counter(output_name(name, columns) for name in carried).items() if count > 1]
    if twice:
        raise ConfigError(
            f"two columns of the query would be called {', '.join(twice)}",
            expected="a separate name for each, with labels and query columns in one table",
            remedy="remove one of them from --obs-columns",
        )
    return carried


def _trained(checkpoint: CellEncoder, reference: Reference, fitness: Fitness, column: str) -> str | None:
    """Why held-out errors are optimistic, as far as labels and, where they are known, groups say."""
    labels = reference.cell_counts(column)
    groups = reference.cell_counts(fitness.calibrate_by) if fitness.calibrate_by else {}
    return training_overlap(checkpoint, reference.index, filter(None, (*groups, *labels)), labels)


def _promises(
    checkpoint: CellEncoder,
    reference: Reference,
    calibrated: Mapping[str, Calibration],
    positions: Mapping[str, Mapping[str, Position]],
) -> dict[str, Promise]:
    """What is promised of each calibrated label column; withdrawals are logged."""
    promises: dict[str, Promise] = {}
    for column, calibration in calibrated.items():
        labels, groups = reference.cell_counts(column), calibration.held_out.by_group
        trained = training_overlap(checkpoint, reference.index, (*groups, *filter(None, labels)), labels)
        promises[column] = Promise.of(calibration, positions[column], trained)
        doubtful = promises[column].withdrawn or trained is not None
        logger.log(logging.WARNING if doubtful else logging.INFO, "%s: %s", column, promises[column].text())
    return promises
