"""Query cells -> embeddings -> neighbours in the reference -> labels by vote -> report."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.config import CellSettings, ComputeSettings, EmbedSettings, MapSettings
from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.flows.cluster import connected
from scgpt_ray.flows.embed import embed, model_identity
from scgpt_ray.flows.mapped import METRICS, REPORT, Mapped, judge, write_mapped
from scgpt_ray.flows.search import index_neighbors, neighbor_labels, reference_labels
from scgpt_ray.folder import Folder
from scgpt_ray.index.description import INDEX, IndexDescription
from scgpt_ray.index.search import Neighbors
from scgpt_ray.mapping.transfer import UNKNOWN, exclude, group_codes, transfer
from scgpt_ray.model.checkpoint import read_checkpoint
from scgpt_ray.model.tokens import TokenRules
from scgpt_ray.schema import EMBEDDING, JOINID, Float32Matrix, obs_columns
from scgpt_ray.store.export import read_embeddings
from scgpt_ray.store.parts import vectors_of
from scgpt_ray.tracking import Tracker

logger = logging.getLogger(__name__)

_MAX_WIDTH = 2048
"""Most neighbours that a search for others than one's own group goes through."""


def map_query(settings: MapSettings) -> Mapped:
    """Map query cells onto an indexed reference.

    The query is embedded into `embeddings/` of the output folder, resumably; searching and voting are done anew by
    every call.

    Raises:
        InputError: If the input is wrong, or checkpoint and index do not belong together.
        RunError: If the work failed; the same command resumes it.
    """
    output, folder = Folder.at(settings.output), Folder.at(settings.index)
    index = read_index(folder)
    columns = _label_columns(settings, index)
    request = embed_request(settings, index)
    with (
        connected(),
        Tracker("map", output, {"config": settings.model_dump(), "index": index.request}) as tracker,
    ):
        manifest = embed(request)
        queries = read_embeddings(Folder.at(request.output))
        neighbors, labels = _neighbors(settings, folder, index, queries, columns)
        predictions = _predictions(queries, transfer(*neighbors, labels, columns))
        mapped = judge(settings, output, predictions, reference_labels(folder, index.shards, columns[0]), columns)
        write_mapped(mapped, settings, index, manifest, queries, predictions)
        if mapped.scores:
            tracker.log_metrics({"accuracy": mapped.scores.accuracy, "macro_f1": mapped.scores.macro_f1})
        for name in (METRICS, REPORT):
            tracker.log_artifact(name)
    return mapped


def read_index(folder: Folder) -> IndexDescription:
    """The description of a finished index.

    Raises:
        ReferenceSetError: If there is none.
    """
    if not folder.has(INDEX):
        raise ReferenceSetError(
            f"{folder.uri} has no {INDEX}",
            expected="the output folder of a finished index",
            remedy="run index again",
        )
    return IndexDescription.from_json(folder.read(INDEX), folder.where(INDEX))


def _label_columns(settings: MapSettings, index: IndexDescription) -> list[str]:
    columns = list(settings.label_columns or index.label_columns)
    lacking = [name for name in (*columns, *filter(None, [settings.exclude_same])) if name not in index.label_columns]
    if lacking or not columns:
        raise ConfigError(
            f"{settings.index} keeps no column {', '.join(lacking) or 'at all'}",
            expected=f"one of {', '.join(index.label_columns) or 'none'}",
            remedy="build the index with --label-columns",
        )
    return columns


def embed_request(settings: MapSettings, index: IndexDescription) -> EmbedSettings:
    """The embed settings that put the query into the space of the index.

    Raises:
        ReferenceSetError: If the checkpoint is not the one the reference was embedded with.
    """
    space = index.fingerprint["model"]
    rules = TokenRules(max_length=space["max_length"], seed=space["seed"], ties=space["ties"])
    mine = model_identity(read_checkpoint(settings.checkpoint), rules, space["precision"])
    if mine != space:
        differing = ", ".join(key for key in space if mine.get(key) != space[key])
        raise ReferenceSetError(
            f"{settings.checkpoint} and {settings.index} differ in {differing}",
            expected="the checkpoint that the reference was embedded with",
            remedy="give that one to --checkpoint, or embed and index the reference again",
        )
    shared = {*CellSettings.model_fields, *ComputeSettings.model_fields} - {"obs_columns"}
    carried = (*settings.obs_columns, *filter(None, (settings.truth_column, settings.exclude_same)))
    return EmbedSettings(
        atlas=settings.query,
        checkpoint=settings.checkpoint,
        output=Folder.at(settings.output).folder("embeddings").uri,
        obs_columns=tuple(dict.fromkeys(carried)),
        max_length=rules.max_length,
        seed=rules.seed,
        ties=rules.ties,
        precision=space["precision"],
        **settings.model_dump(include=shared),
    )


def _neighbors(
    settings: MapSettings, folder: Folder, index: IndexDescription, queries: pa.Table, columns: list[str]
) -> tuple[Neighbors, pa.Table]:
    """Neighbours [Q, k] of the query cells that have an embedding, and the labels of all of them."""
    _, vectors_QD = vectors_of(queries)
    k = settings.k
    if settings.exclude_same is None:
        neighbors = index_neighbors(folder, index.shards, vectors_QD, k, index.nprobe)
        return neighbors, neighbor_labels(folder, index.shards, neighbors[0], columns)
    return _foreign_neighbors(settings, folder, index, queries, columns, vectors_QD)


def _foreign_neighbors(
    settings: MapSettings,
    folder: Folder,
    index: IndexDescription,
    queries: pa.Table,
    columns: list[str],
    vectors_QD: Float32Matrix,
) -> tuple[Neighbors, pa.Table]:
    """Neighbours that do not share the query cell's own value of --exclude-same; the search widens until k are left."""
    column = settings.exclude_same
    assert column is not None
    own = queries.filter(queries[EMBEDDING].is_valid())[column]
    width = settings.k
    while True:
        width = min(4 * width, _MAX_WIDTH, max(index.n_cells, settings.k))
        ids, scores = index_neighbors(folder, index.shards, vectors_QD, width, index.nprobe)
        labels = neighbor_labels(folder, index.shards, ids, list(dict.fromkeys([*columns, column])))
        groups = group_codes(ids, labels, column, own)
        ids, scores, short = exclude(ids, scores, *groups, settings.k)
        if len(short) and width >= min(_MAX_WIDTH, index.n_cells):
            logger.warning("%d cells have fewer than %d neighbours of another %s", len(short), settings.k, column)
        if not len(short) or width >= min(_MAX_WIDTH, index.n_cells):
            return (ids, scores), labels


def _predictions(queries: pa.Table, voted: pa.Table) -> pa.Table:
    """All query cells: their labels, and `Unknown` for those without an embedding, which nobody could search for.

    A carried column that has the name of a predicted one is kept as `<name>_query`.
    """
    present = queries[EMBEDDING].is_valid().to_numpy()
    row_of_cell = pa.array(np.cumsum(present) - 1, mask=~present)
    carried = {f"{name}_query" if name in voted.column_names else name: queries[name] for name in obs_columns(queries)}
    labels = {
        name: pc.fill_null(voted[name].take(row_of_cell), UNKNOWN if pa.types.is_string(voted[name].type) else 0.0)
        for name in voted.column_names
    }
    return pa.table({JOINID: queries[JOINID], **carried, **labels})
