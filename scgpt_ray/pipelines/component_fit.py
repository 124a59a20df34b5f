"""Cells -> principal components, for `--checkpoint pca`: fitted once, to a sample, before a run begins.

Shapes: N sampled cells, V tokens of the vocabulary, H variable genes, C components.
"""

import logging
import time

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.atlas.source import Cells
from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import InputError
from scgpt_ray.network.components import COUNTS_PER_CELL, write_components
from scgpt_ray.pipelines.embed_request import harmonize_genes
from scgpt_ray.pipelines.raw_counts import counts_matrix
from scgpt_ray.progress import Stage
from scgpt_ray.schema import Int64Array
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.vocabulary import Vocabulary

N_GENES = 2000
"""Variable genes, by scanpy's flavour seurat, as in most tutorials."""

_RUNS, _RUN = 32, 512
"""A larger atlas is sampled in so many runs of so many neighbouring cells: runs are read fast, also from a store."""

logger = logging.getLogger(__name__)


@Stage("fit principal components")
def fit(source: Cells, settings: EmbedSettings, n_components: int, place: Folder) -> None:
    """Fit components to up to 16,384 of the selected cells, and write them.

    All of these cells are in memory (about 16 kB each for 2,000 genes with counts), and a matrix of genes by genes.

    Args:
        source: The cells.
        settings: How its genes are named.
        n_components: Components.
        place: Folder to write to.

    Raises:
        InputError: If the values are not counts, or there are too few cells or genes.
    """
    # Imported on need: they take seconds.
    from sklearn.decomposition import PCA

    from scgpt_ray.evaluation.components import log1p_cp10k, require_whole
    from scgpt_ray.evaluation.variable_genes import variable_genes

    started = time.monotonic()
    names = harmonize_genes(source, Vocabulary({}), settings).name
    vocabulary = Vocabulary({name: token for token, name in enumerate(dict.fromkeys(filter(None, names)))})
    tokens = harmonize_genes(source, vocabulary, settings).lookup()
    runs = [Partition.of(number, run) for number, run in enumerate(_runs(source.joinids()))]
    cells = pa.concat_tables(block for run in runs for block in source.read(run, tokens))
    counts_NV = counts_matrix(cells, vocabulary.size)
    require_whole(counts_NV.data)
    counts_NV = counts_NV[np.flatnonzero(counts_NV.getnnz(axis=1))]
    logs_NV = log1p_cp10k(counts_NV)
    found_V = np.flatnonzero(logs_NV.getnnz(axis=0))
    smallest = min(logs_NV.shape[0], len(found_V))
    if smallest <= n_components:
        raise InputError(
            f"{source.uri}: {logs_NV.shape[0]:,} cells with counts of {len(found_V):,} genes",
            expected=f"more than {n_components} of both for as many components",
            remedy="ask for fewer components, with --checkpoint pca:N",
        )
    token_H = found_V[variable_genes(logs_NV[:, found_V], N_GENES, "seurat")]
    pca = PCA(n_components, svd_solver="covariance_eigh").fit(logs_NV[:, token_H].astype(np.float64))
    about = {
        "cells": logs_NV.shape[0],
        "genes": len(token_H),
        "components": n_components,
        "counts_per_cell": COUNTS_PER_CELL,
        "explained_variance": pca.explained_variance_ratio_.round(6).tolist(),
    }
    write_components(place, vocabulary, token_H.astype(np.int32), pca.mean_, pca.components_, about)
    logger.info(
        "%d components of %d genes, fitted to %d cells in %.1f s, explain %.1f%% of the variance",
        n_components, len(token_H), logs_NV.shape[0], time.monotonic() - started,
        100 * pca.explained_variance_ratio_.sum(),
    )  # fmt: skip


def _runs(joinids: Int64Array) -> list[Int64Array]:
    if len(joinids) <= _RUNS * _RUN:
        return [joinids]
    starts = np.linspace(0, len(joinids) - _RUN, _RUNS).astype(int)
    return [joinids[start : start + _RUN] for start in starts]
