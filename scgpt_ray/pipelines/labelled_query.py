"""query.h5ad: the cells of a query as the user has them, with labels, embeddings and coordinates."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scgpt_ray.atlas.embedding_h5ad import OBSM_KEY
from scgpt_ray.atlas.results_h5ad import ResultsH5ad
from scgpt_ray.atlas.source import Source
from scgpt_ray.config import MapSettings
from scgpt_ray.errors import DamagedError
from scgpt_ray.pipelines.labelled_cells import (
    UNS,
    chosen_columns,
    index_provenance,
    mapping_note,
    own_columns,
    predicted_columns,
)
from scgpt_ray.pipelines.map_cells import Drawn
from scgpt_ray.pipelines.mapping_result import QUERY_H5AD, MappingResult
from scgpt_ray.pipelines.query_parts import PREDICTIONS, joined
from scgpt_ray.records import IndexDescription
from scgpt_ray.schema import EMBEDDING, JOINID, dense_vectors

logger = logging.getLogger(__name__)


def write_labelled_query(
    mapped: MappingResult, settings: MapSettings, source: Source, index: IndexDescription, drawn: Drawn | str
) -> str | None:
    """Write the cells of the query as the user has them, with predictions, X_scGPT and the coordinates of the report.

    Cells without an embedding get rows of NaN, and cells that are not drawn get NaN as coordinates. An own X_umap of
    the query stays, with ours as X_umap_scGPT. One part of the embeddings is in memory at a time.

    Returns:
        Why there is no file: it may take too much, or some cells cannot be read; None if it was written.
    """
    cells = mapped.parts.rows(np.arange(mapped.n_cells), [JOINID])[JOINID].to_numpy()
    if not source.can_save(cells):
        logger.warning("%s is too large for %s: the labels are in %s", source.uri, QUERY_H5AD, PREDICTIONS)
        return "the query is too large"
    manifest = mapped.parts.manifest
    known = {
        "model": manifest.fingerprint.model,
        "checkpoint": settings.checkpoint,
        "layer": source.layer,
        "coverage": {"fraction": manifest.coverage["fraction"]},
    }
    try:
        with mapped.output.staged(QUERY_H5AD) as path:
            source.save(cells, path)
            _add_results(path, mapped, known, index_provenance(settings, index), drawn)
    except DamagedError as error:
        logger.warning("no %s: %s; the labels are in %s", QUERY_H5AD, error, PREDICTIONS)
        return "some cells cannot be read"
    return None


def _add_results(
    path: Path, mapped: MappingResult, known: Mapping[str, Any], index: Mapping[str, Any], drawn: Drawn | str
) -> None:
    parts, labels = mapped.parts, list(mapped.labels)
    names = chosen_columns(parts.predicted(parts.names[0]).column_names, labels)
    columns = predicted_columns(joined([parts.predicted(part, names) for part in parts.names]), labels)
    vectors = (dense_vectors(parts.embeddings(part, [EMBEDDING])[EMBEDDING]) for part in parts.names)
    with ResultsH5ad.at(path) as file:
        noted = file.noted(UNS)
        file.add_obs(columns, own_columns(noted))
        file.set_obsm(OBSM_KEY, vectors, mapped.n_cells)
        if isinstance(drawn, Drawn):
            coordinates_N2 = np.full((mapped.n_cells, 2), np.nan, np.float32)
            coordinates_N2[drawn.rows] = drawn.coordinates_N2[: len(drawn.rows)]
            own = "X_umap_scGPT" if file.has("obsm/X_umap") else "X_umap"
            file.set_obsm(own, [coordinates_N2], mapped.n_cells)
        file.note(UNS, {**noted, **known, **mapping_note(index, columns)})
