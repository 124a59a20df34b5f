"""Embeddings and predictions in an AnnData: no column of the user's is replaced."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scgpt_ray import __version__
from scgpt_ray.atlas.embedding_h5ad import OBSM_KEY
from scgpt_ray.config import MapSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.mapping.prediction import SUFFIXES
from scgpt_ray.records import IndexDescription
from scgpt_ray.schema import Float32Matrix

if TYPE_CHECKING:
    from scgpt_ray.atlas.anndata_file import AnnData


PREFIX = "predicted_"
"""In front of the name of each column of the predictions."""

UNS = "scgpt_ray"
"""Key of uns with the provenance of the results."""

_COLUMNS = "columns"


def obs_names(columns: Sequence[str]) -> list[str]:
    """Names of obs columns that predictions of label columns may get."""
    return [f"{PREFIX}{column}{suffix}" for column in columns for suffix in ("", *SUFFIXES)]


def require_free(columns: Sequence[str], present: Collection[str], where: str, own: Collection[str] = ()) -> None:
    """Require that no column of the user's would be replaced.

    Args:
        columns: Label columns to predict.
        present: Columns of obs.
        where: The cells, for messages.
        own: Those of them that an earlier mapping added.

    Raises:
        ConfigError: If there is another column of such a name.
    """
    taken = sorted({*obs_names(columns)} & {*present} - {*own})
    if taken:
        raise ConfigError(
            f"{where}: obs has a column {', '.join(taken)}",
            expected=f"names starting with {PREFIX} left for the predictions",
            remedy="rename it, or leave its label column out of --label-columns",
        )


def own_columns(adata: "AnnData") -> list[str]:
    """Columns of obs that an earlier mapping added."""
    return [str(name) for name in adata.uns.get(UNS, {}).get(_COLUMNS, ())]


def add_embeddings(adata: "AnnData", vectors_ND: Float32Matrix, provenance: Mapping[str, Any]) -> None:
    """Set obsm["X_scGPT"], and what is known of it in uns["scgpt_ray"]."""
    adata.obsm[OBSM_KEY] = vectors_ND
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), "version": __version__, **provenance}


def add_predictions(adata: "AnnData", predicted: pa.Table, columns: Sequence[str], index: Mapping[str, Any]) -> None:
    """Add the predictions to obs, instead of those of an earlier mapping.

    Args:
        adata: The cells.
        predicted: Result of `predictions_of`, one row per cell in their order.
        columns: Label columns.
        index: What is known of the index, for uns.
    """
    if own := [name for name in own_columns(adata) if name in adata.obs]:
        adata.obs = adata.obs.drop(columns=own)
    possible = {*obs_names(columns)}
    chosen = [name for name in predicted.column_names if f"{PREFIX}{name}" in possible]
    for name in chosen:
        is_text = pa.types.is_string(predicted[name].type)
        values = predicted[name].dictionary_encode() if is_text else predicted[name]
        adata.obs[f"{PREFIX}{name}"] = values.to_pandas().set_axis(adata.obs_names)
    added = [f"{PREFIX}{name}" for name in chosen]
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), "version": __version__, "index": dict(index), _COLUMNS: added}


def index_provenance(settings: MapSettings, index: IndexDescription) -> dict[str, Any]:
    """What identifies an index and the votes, for uns."""
    return {
        "place": settings.index,
        "embeddings": index.embeddings,
        "fingerprint": index.fingerprint.digest,
        "n_cells": index.n_cells,
        "k": settings.k,
    }
