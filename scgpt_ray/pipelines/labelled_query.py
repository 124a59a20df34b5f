"""query.h5ad: the cells of a query as the user has them, with labels, embeddings and coordinates."""

import logging
from typing import TYPE_CHECKING

import numpy as np

from scgpt_ray.atlas.source import Source
from scgpt_ray.config import MapSettings
from scgpt_ray.errors import DamagedError
from scgpt_ray.pipelines.labelled_cells import add_embeddings, add_predictions, index_provenance
from scgpt_ray.pipelines.map_cells import Drawn
from scgpt_ray.pipelines.mapping_result import QUERY_H5AD, MappingResult
from scgpt_ray.pipelines.query_parts import PREDICTIONS
from scgpt_ray.records import IndexDescription
from scgpt_ray.schema import EMBEDDING, JOINID, dense_vectors

if TYPE_CHECKING:
    from scgpt_ray.atlas.anndata_file import AnnData

logger = logging.getLogger(__name__)

_MOST_CELLS = 200_000
"""Cells of which embeddings and predictions fit into memory: 0.6 GB with 512 dimensions and 50 neighbours."""


def labelled_query(
    mapped: MappingResult, settings: MapSettings, source: Source, index: IndexDescription, drawn: Drawn | str
) -> "AnnData | str":
    """The cells of the query as the user has them, with predictions, X_scGPT and the coordinates of the report.

    Cells without an embedding get rows of NaN, and cells that are not drawn get NaN as coordinates. An own X_umap of
    the query stays, with ours as X_umap_scGPT.

    Returns:
        The cells; or why there are none: they may not fit into memory, or some cannot be read.
    """
    if mapped.n_cells > _MOST_CELLS:
        return _too_large(source)
    every = np.arange(mapped.n_cells)
    cells = mapped.parts.rows(every, [JOINID])[JOINID].to_numpy()
    try:
        adata = source.whole(cells)
    except DamagedError as error:
        logger.warning("no %s: %s; the labels are in %s", QUERY_H5AD, error, PREDICTIONS)
        return "some cells cannot be read"
    if adata is None:
        return _too_large(source)
    manifest = mapped.parts.manifest
    vectors = dense_vectors(mapped.parts.rows(every, [EMBEDDING])[EMBEDDING])
    provenance = {"model": manifest.fingerprint.model, "checkpoint": settings.checkpoint, "layer": source.layer}
    add_embeddings(adata, vectors, {**provenance, "coverage": {"fraction": manifest.coverage["fraction"]}})
    add_predictions(adata, mapped.predictions, list(mapped.labels), index_provenance(settings, index))
    if isinstance(drawn, Drawn):
        coordinates_N2 = np.full((adata.n_obs, 2), np.nan, np.float32)
        coordinates_N2[drawn.rows] = drawn.coordinates_N2[: len(drawn.rows)]
        adata.obsm["X_umap_scGPT" if "X_umap" in adata.obsm else "X_umap"] = coordinates_N2
    return adata


def _too_large(source: Source) -> str:
    logger.warning("%s is too large for %s: the labels are in %s", source.uri, QUERY_H5AD, PREDICTIONS)
    return "the query is too large"
