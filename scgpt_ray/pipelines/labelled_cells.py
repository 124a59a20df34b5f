"""Embeddings and predictions in an AnnData: no column of the user's is replaced."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
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


def own_columns(noted: Mapping[str, Any]) -> list[str]:
    """Columns of obs that an earlier mapping added, by the entry `UNS` of uns."""
    return [str(name) for name in noted.get(_COLUMNS, ())]


def add_embeddings(adata: "AnnData", vectors_ND: Float32Matrix, provenance: Mapping[str, Any]) -> None:
    """Set obsm["X_scGPT"], and what is known of it in uns["scgpt_ray"]."""
    adata.obsm[OBSM_KEY] = vectors_ND
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), "version": __version__, **provenance}


def predicted_columns(predicted: pa.Table, columns: Sequence[str]) -> dict[str, pd.Series]:
    """Columns of obs of predictions.

    Args:
        predicted: Result of `predictions_of`, or some of its columns.
        columns: Label columns.
    """
    values = {}
    for name in chosen_columns(predicted.column_names, columns):
        is_text = pa.types.is_string(predicted[name].type)
        values[f"{PREFIX}{name}"] = (predicted[name].dictionary_encode() if is_text else predicted[name]).to_pandas()
    return values


def chosen_columns(present: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Those columns of predictions that become columns of obs."""
    possible = {*obs_names(columns)}
    return [name for name in present if f"{PREFIX}{name}" in possible]


def mapping_note(index: Mapping[str, Any], added: Collection[str]) -> dict[str, Any]:
    """What uns["scgpt_ray"] gets by a mapping: what is known of the index, and the columns of obs."""
    return {"version": __version__, "index": dict(index), _COLUMNS: [*added]}


def add_predictions(adata: "AnnData", predicted: pa.Table, columns: Sequence[str], index: Mapping[str, Any]) -> None:
    """Add the predictions to obs, instead of those of an earlier mapping.

    Args:
        adata: The cells.
        predicted: Result of `predictions_of`, one row per cell in their order.
        columns: Label columns.
        index: What is known of the index, for uns.
    """
    noted = adata.uns.get(UNS, {})
    if own := [name for name in own_columns(noted) if name in adata.obs]:
        adata.obs = adata.obs.drop(columns=own)
    added = predicted_columns(predicted, columns)
    for name, values in added.items():
        adata.obs[name] = values.set_axis(adata.obs_names)
    adata.uns[UNS] = {**noted, **mapping_note(index, added)}


def index_provenance(settings: MapSettings, index: IndexDescription) -> dict[str, Any]:
    """What identifies an index and the votes, for uns."""
    return {
        "place": settings.index,
        "embeddings": index.embeddings,
        "fingerprint": index.fingerprint.digest,
        "n_cells": index.n_cells,
        "k": settings.k,
    }
