"""Query cells -> embeddings -> neighbours in the reference -> labels by vote -> report."""

from collections import Counter

import pyarrow as pa

from scgpt_ray.config import CellSettings, ComputeSettings, EmbedSettings, MapSettings
from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.flows.cluster import connected
from scgpt_ray.flows.embed import run
from scgpt_ray.flows.job import check, model_identity
from scgpt_ray.flows.mapped import METRICS, REPORT, Mapped, judge, own_name, predictions_of, write_mapped
from scgpt_ray.flows.search import Reference, foreign_neighbors
from scgpt_ray.folder import Folder
from scgpt_ray.index.description import IndexDescription
from scgpt_ray.mapping.transfer import transfer
from scgpt_ray.model.checkpoint import read_checkpoint
from scgpt_ray.model.tokens import TokenRules
from scgpt_ray.schema import EMBEDDING
from scgpt_ray.store.export import read_embeddings
from scgpt_ray.store.parts import vectors_of
from scgpt_ray.tracking import Tracker


def map_query(settings: MapSettings) -> Mapped:
    """Map query cells onto an indexed reference.

    The query is embedded into `embeddings/` of the output folder, resumably; searching and voting are done anew by
    every call.

    Raises:
        InputError: If the input is wrong, or checkpoint and index do not belong together.
        RunError: If the work failed; the same command resumes it.
    """
    output, reference = Folder.at(settings.output), Reference.at(settings.index)
    columns = label_columns(settings, reference.index)
    request = embed_request(settings, reference.index, columns)
    job = check(request)
    with (
        connected(),
        Tracker("map", output, {"config": settings.model_dump(), "index": reference.index.request}) as tracker,
    ):
        manifest = job.done or run(job, tracker)
        queries = read_embeddings(Folder.at(request.output))
        predictions = predictions_of(queries, _voted(settings, reference, queries, columns), columns)
        mapped = judge(settings, queries, predictions, columns, reference.distinct_labels(columns[0]))
        write_mapped(mapped, settings, reference.index, manifest, queries)
        if mapped.scores:
            tracker.log_metrics({"accuracy": mapped.scores.accuracy, "macro_f1": mapped.scores.macro_f1})
        for name in (METRICS, REPORT):
            tracker.log_artifact(name)
    return mapped


def label_columns(settings: MapSettings, index: IndexDescription) -> list[str]:
    """The labels to transfer.

    Raises:
        ConfigError: If the index lacks one of them, or the column of --exclude-same.
    """
    columns = list(dict.fromkeys(settings.label_columns or index.label_columns))
    needed = [*columns, settings.exclude_same] if settings.exclude_same else columns
    lacking = [name for name in needed if name not in index.label_columns]
    if lacking or not columns:
        raise ConfigError(
            f"{settings.index} keeps no column {', '.join(lacking) or 'at all'}",
            expected=f"one of {', '.join(index.label_columns) or 'none'}",
            remedy="build the index with --label-columns",
        )
    return columns


def embed_request(settings: MapSettings, index: IndexDescription, columns: list[str]) -> EmbedSettings:
    """The embed settings that put the query into the space of the index.

    Raises:
        ReferenceSetError: If the checkpoint is not the one the reference was embedded with.
        ConfigError: If columns of the query cannot be carried along.
    """
    space = index.fingerprint["model"]
    rules = TokenRules(max_length=space["max_length"], seed=space["seed"], ties=space["ties"])
    mine = model_identity(read_checkpoint(settings.checkpoint), rules, space["precision"])
    if mine != space:
        differing = ", ".join(key for key in sorted(mine.keys() | space.keys()) if mine.get(key) != space.get(key))
        raise ReferenceSetError(
            f"{settings.checkpoint} and {settings.index} differ in {differing}",
            expected="the checkpoint that the reference was embedded with",
            remedy="give that one to --checkpoint, or embed and index the reference again",
        )
    shared = {*CellSettings.model_fields, *ComputeSettings.model_fields}
    return EmbedSettings.of(
        settings.model_dump(include=shared)
        | {
            "atlas": settings.query,
            "checkpoint": settings.checkpoint,
            "output": Folder.at(settings.output).folder("embeddings").uri,
            "obs_columns": _carried(settings, columns),
            "max_length": rules.max_length,
            "seed": rules.seed,
            "ties": rules.ties,
            "precision": space["precision"],
        }
    )


def _carried(settings: MapSettings, columns: list[str]) -> tuple[str, ...]:
    """The obs columns of the query that are needed, each under a name of its own among the predictions."""
    needed = (settings.truth_column, settings.exclude_same)
    carried = tuple(dict.fromkeys((*settings.obs_columns, *(name for name in needed if name))))
    twice = [name for name, count in Counter(own_name(name, columns) for name in carried).items() if count > 1]
    if twice:
        raise ConfigError(
            f"two columns of the query would be called {', '.join(twice)}",
            expected="a name of its own for each, with labels and query columns side by side",
            remedy="take one of them out of --obs-columns",
        )
    return carried


def _voted(settings: MapSettings, reference: Reference, queries: pa.Table, columns: list[str]) -> pa.Table:
    """Labels and confidence of the query cells that have an embedding."""
    _, vectors_QD = vectors_of(queries)
    if settings.exclude_same is None:
        ids_QK, scores_QK = reference.neighbors(vectors_QD, settings.k)
    else:
        own_Q = queries.filter(queries[EMBEDDING].is_valid())[settings.exclude_same]
        ids_QK, scores_QK = foreign_neighbors(reference, vectors_QD, own_Q, settings.exclude_same, settings.k)
    return transfer(ids_QK, scores_QK, reference.labels(ids_QK, columns), columns)
