"""A request for an index, with its defaults filled in."""

from collections.abc import Mapping
from typing import Any

from scgpt_ray.config import IndexSettings
from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.identity import require_same_model
from scgpt_ray.index.description import require_index
from scgpt_ray.index.factory import (
    choose_factory,
    default_shards,
    empty_index,
    training_size,
)
from scgpt_ray.index.template import require_rows
from scgpt_ray.pipelines.index_steps import (
    template_of,
)
from scgpt_ray.records import IndexDescription, Manifest
from scgpt_ray.schema import OBSERVATION
from scgpt_ray.storage import Folder
from scgpt_ray.tracking import Input, Tracker


def require_belongs(there: IndexDescription, manifest: Manifest, source: Folder, output: Folder) -> None:
    """Require that embeddings can be appended to an index: the same model, atlas and label columns.

    Raises:
        ReferenceSetError: If they differ.
    """
    mine, atlas = manifest.fingerprint, there.fingerprint.cells.get("uri")
    require_same_model(source.uri, mine.model, output.uri, there.fingerprint.model)
    if mine.cells.get("uri") != atlas:
        raise ReferenceSetError(
            f"{source.uri} is of the atlas {mine.cells.get('uri')}, {output.uri} of {atlas}",
            expected="one atlas, in which a soma_joinid is one cell",
            remedy="join the cells in one atlas, or build another index",
        )
    lacking = [name for name in there.label_columns if name not in manifest.obs_columns]
    if lacking:
        raise ReferenceSetError(
            f"{source.uri} carries no column {', '.join(lacking)}",
            expected=f"the label columns of the index ({', '.join(there.label_columns)})",
            remedy="run embed with --obs-columns into a new folder",
        )


def resolve(settings: IndexSettings, manifest: Manifest) -> dict[str, Any]:
    """Fill in the defaults of a request; equal requests give equal indexes.

    Raises:
        InputError: If the request does not fit the embeddings.
    """
    # A value per cell, which embed adds for the Census, is no label.
    usual = [name for name in manifest.obs_columns if name != OBSERVATION]
    labels = list(dict.fromkeys(settings.label_columns or usual))
    lacking = [name for name in labels if name not in manifest.obs_columns]
    if lacking:
        raise ConfigError(
            f"--label-columns {' '.join(lacking)}",
            expected=f"columns the embeddings carry ({', '.join(manifest.obs_columns) or 'none'})",
            remedy="run embed with --obs-columns into a new folder",
        )
    if settings.held_out_column not in (None, *labels):
        raise ConfigError(
            f"--held-out-column {settings.held_out_column}",
            expected=f"a column that is stored with the index ({', '.join(labels) or 'none'})",
            remedy="name one of these, or add it to --label-columns",
        )
    n_cells = manifest.n_cells - manifest.n_empty
    if not n_cells:
        raise ReferenceSetError(
            f"{settings.embeddings} has no cell with an embedding",
            expected="at least one",
            remedy="check the atlas",
        )
    n_shards = min(settings.shards or default_shards(n_cells), len(manifest.parts))
    budget = settings.memory_budget
    factory = settings.factory
    template: dict[str, str] = {}
    if settings.template is not None:
        factory, template = _trained(settings, manifest)
    elif factory == "auto":
        factory = choose_factory(n_cells, manifest.dimension, budget, n_shards, settings.target_recall)
    n_training = training_size(factory, n_cells, manifest.dimension, budget)
    require_rows(empty_index(factory, manifest.dimension), factory, n_training)
    return {
        "embeddings": manifest.fingerprint.digest,
        "labels": labels,
        "factory": factory,
        "training": n_training,
        "shards": n_shards,
        "target_recall": settings.target_recall,
        "seed": settings.seed,
        **({"held_out": settings.held_out_column} if settings.held_out_column else {}),
        **template,
    }


def _trained(settings: IndexSettings, manifest: Manifest) -> tuple[str, dict[str, str]]:
    """Factory of the index whose template is to be used, and its digest for the request.

    Raises:
        InputError: If it is of another model, another factory was asked for, or its template is damaged.
    """
    assert settings.template is not None, "there is one"
    folder = Folder.at(settings.template)
    index = require_index(folder)
    require_same_model(settings.embeddings, manifest.fingerprint.model, folder.uri, index.fingerprint.model)
    if settings.factory not in ("auto", index.factory):
        raise ConfigError(
            f"--factory {settings.factory} with --template of {index.factory}",
            expected="one of the two",
            remedy="drop --factory",
        )
    return index.factory, {"template": template_of(folder)}


def tracker_of(
    output: Folder,
    config: Mapping[str, Any],
    request: Mapping[str, Any],
    source: Folder,
    manifest: Manifest,
    tracking: str | None = None,
) -> Tracker:
    """The MLflow run of an index of some embeddings."""
    digest = manifest.fingerprint.digest
    return Tracker(
        "index",
        output,
        {"config": config, "request": request},
        request=[request, digest],
        inputs=[Input("embeddings", source.uri, digest, manifest.n_cells)],
        tags={"fingerprint": digest},
        tracking=tracking,
    )
