"""Tools for an AnnData in memory, as scanpy has them: cells are embedded and labelled in place, in this process.

`embed` and `map` take the same steps as the verbs of these names, without Ray and without files. All of the AnnData is
in memory and one device embeds it: for large sets, several GPUs, calibration or a report use `scgpt_ray.embed` and
`scgpt_ray.map_query`.
"""

from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.atlas.anndata_file import NAME, AnnData, AnnDataCells
from scgpt_ray.atlas.embedding_h5ad import OBSM_KEY
from scgpt_ray.config import EmbedSettings, MapSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.pipelines.embed_request import require_device
from scgpt_ray.pipelines.in_memory import EmbeddedCells, embed_cells
from scgpt_ray.pipelines.labelled_cells import UNS, add_embeddings, add_predictions, own_columns, require_free
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, matrix_array

_GENES = ("feature_name", "index")


def embed(
    adata: AnnData,
    checkpoint: str | PathLike[str],
    *,
    layer: str | None = None,
    gene_columns: str | Sequence[str] = _GENES,
    gene_table: str | None = None,
    min_coverage: float = 0.5,
    max_length: int = 1200,
    seed: int = 0,
    samples: int = 1,
    ties: Literal["random", "top"] = "random",
    pooling: Literal["cls", "mean"] = "cls",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: Literal["auto", "gpu", "cpu"] = "auto",
) -> None:
    """Embed the cells of an AnnData in place.

    Sets `obsm["X_scGPT"]`, float32 [n_cells, d], unit vectors, NaN for cells without a gene of the vocabulary; and
    `uns["scgpt_ray"]`: version, model (checkpoint and token rules), layer, and gene coverage. All else stays as it is.

    Args:
        adata: Cells x genes.
        checkpoint: Name, folder or hf://..., as for `scgpt_ray.embed`.
        layer: Where the counts are: "X", "raw" for .raw, or a layer. Default: the first of the layer `counts`, .raw and
            X that holds integers, or X if none does.
        gene_columns: Columns of var with gene names, in order of preference; "index" is var_names.
        gene_table: CSV of gene id and symbol that translates names missing from the vocabulary.
        min_coverage: Smallest fraction of counts in genes of the vocabulary, 0 to 1.
        max_length: Most tokens per cell, <cls> included; longer cells are sampled.
        seed: Random seed of ties and sampling.
        samples: Number of seeds over which the embedding of a cell is averaged.
        ties: Bin of equal counts, as for `scgpt_ray.embed`.
        pooling: What becomes the embedding: the row of <cls>, or the mean of the rows of the genes.
        precision: Arithmetic of the network; "auto" is float16 on a GPU and float32 on a CPU.
        device: "auto" is the GPU if there is one.

    Raises:
        AtlasError: If the cells have no counts.
        CheckpointError: If the checkpoint cannot be used.
        ConfigError: If an option is invalid.
        GeneCoverageError: If too few of the counts belong to genes of the vocabulary.
    """
    settings = EmbedSettings.of(
        {
            "atlas": NAME,
            "checkpoint": fspath(checkpoint),
            "output": NAME,
            "layer": layer,
            "gene_columns": _listed(gene_columns),
            "gene_table": gene_table,
            "min_coverage": min_coverage,
            "max_length": max_length,
            "seed": seed,
            "samples": samples,
            "ties": ties,
            "pooling": pooling,
            "precision": precision,
            "device": device,
        }
    )
    _embed(adata, settings, None)


def _embed(adata: AnnData, settings: EmbedSettings, preferred: str | None) -> EmbeddedCells:
    require_device(settings)
    cells = AnnDataCells.of(adata, settings.layer)
    embedded = embed_cells(cells, settings, SerialExecutor().pool(settings).device, preferred)
    found = embedded.coverage
    coverage = {"fraction": found.fraction, "genes_matched": found.genes_matched, "genes_total": found.genes_total}
    provenance = {"model": embedded.model, "checkpoint": settings.checkpoint, "layer": cells.layer}
    add_embeddings(adata, embedded.vectors(), {**provenance, "coverage": coverage})
    return embedded


def map(  # noqa: A001 - the name of the verb; a module is its namespace
    adata: AnnData,
    index: str | PathLike[str],
    checkpoint: str | PathLike[str] | None = None,
    *,
    label_columns: str | Sequence[str] = (),
    k: int = 10,
    weighting: Literal["uniform", "distance"] = "uniform",
    balance_by: str | None = None,
    exclude_same: str | Sequence[str] = (),
    neighbor_filter: str | None = None,
    layer: str | None = None,
    gene_columns: str | Sequence[str] = _GENES,
    gene_table: str | None = None,
    min_coverage: float = 0.5,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: Literal["auto", "gpu", "cpu"] = "auto",
) -> None:
    """Label the cells of an AnnData in place, by the votes of their neighbours in an indexed reference.

    For each label column sets `obs["predicted_<label>"]`, `obs["predicted_<label>_confidence"]` (share of the votes)
    and the other columns of `predictions.parquet` with `predicted_` in front; an earlier mapping's are replaced, other
    columns never. `uns["scgpt_ray"]` gets the index. Cells without embeddings are embedded first, as `embed` does.

    Args:
        adata: Cells x genes.
        index: Output folder of `scgpt_ray.build_index`, or hf://owner/repo.
        checkpoint: Checkpoint that the reference was embedded with. None: the embeddings of `embed` are used, or, if
            there are none, the checkpoint that the index names.
        label_columns: Label columns to transfer. Default: those that the index examined, without identifiers.
        k: Number of neighbours that vote.
        weighting: Weight of a vote; "distance": larger for nearer neighbours.
        balance_by: Column of the index by whose values votes are balanced.
        exclude_same: Columns of both obs and index: cells that share a value are not neighbours.
        neighbor_filter: Condition on label columns of the index that neighbours must meet.
        layer: As for `embed`, and so are the options below.
        gene_columns: See `embed`.
        gene_table: See `embed`.
        min_coverage: See `embed`.
        precision: "auto" is that of the index, or float32 if the device lacks it.
        device: See `embed`.

    Raises:
        AtlasError: If the cells have no counts.
        ConfigError: If an option is invalid, a column of obs would be replaced, or there are no embeddings.
        GeneCoverageError: If too few of the counts belong to genes of the vocabulary.
        ReferenceSetError: If the index cannot be used, or was made with another model than the embeddings.
    """
    # Imported here: `embed` does not need faiss.
    from scgpt_ray.pipelines.map_in_memory import InMemoryMapping

    is_embedded = checkpoint is None and OBSM_KEY in adata.obsm
    settings = MapSettings.of(
        {
            "query": NAME,
            "index": fspath(index),
            "checkpoint": NAME if is_embedded else fspath(checkpoint) if checkpoint is not None else None,
            "output": NAME,
            "label_columns": _listed(label_columns),
            "k": k,
            "weighting": weighting,
            "balance_by": balance_by,
            "exclude_same": _listed(exclude_same),
            "neighbor_filter": neighbor_filter,
            "layer": layer,
            "gene_columns": _listed(gene_columns),
            "gene_table": gene_table,
            "min_coverage": min_coverage,
            "precision": precision,
            "device": device,
        }
    )
    mapping = InMemoryMapping.of(settings, SerialExecutor())
    require_free(mapping.columns, adata.obs.columns, NAME, own_columns(adata.uns.get(UNS, {})))
    groups = _obs_columns(adata, settings.exclude_same)
    if is_embedded:
        mapping.require_model(_model(adata))
        queries = _embedded_before(adata)
    else:
        queries = _embed(adata, mapping.embed_settings(), mapping.precision).table
    for name, values in groups.items():
        queries = queries.append_column(name, values)
    add_predictions(adata, mapping.predictions(queries), mapping.columns, mapping.provenance())


def _listed(names: str | Sequence[str]) -> str | tuple[str, ...]:
    """Names as the settings take them: also those of an array or an index of pandas."""
    return names if isinstance(names, str) else tuple(names)


def _obs_columns(adata: AnnData, names: Sequence[str]) -> dict[str, pa.Array]:
    lacking = [name for name in names if name not in adata.obs]
    if lacking:
        raise ConfigError(
            f"{NAME}: obs has no column {', '.join(lacking)}",
            expected=f"columns of {', '.join(adata.obs)}",
            remedy="correct exclude_same",
        )
    return {name: pa.array(adata.obs[name].astype(object), from_pandas=True) for name in names}


def _model(adata: AnnData) -> dict[str, Any]:
    """What `embed` noted of the model of the embeddings."""
    found = adata.uns.get(UNS, {}).get("model")
    if found is None:
        raise ConfigError(
            f'obsm["{OBSM_KEY}"] of {NAME} is not of scgpt_ray.tl.embed',
            expected="embeddings of a known model",
            remedy="give the checkpoint of the reference, which replaces them, or rename them",
        )
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()}


def _embedded_before(adata: AnnData) -> pa.Table:
    """EMBEDDINGS from obsm; rows of NaN are null."""
    vectors_ND = np.asarray(adata.obsm[OBSM_KEY], np.float32)
    absent: npt.NDArray[np.bool_] = np.asarray(np.isnan(vectors_ND).any(axis=1))
    return pa.table(
        {
            JOINID: np.arange(adata.n_obs, dtype=np.int64),
            N_GENES: pa.array(np.where(absent, 0, 1), pa.int32()),
            EMBEDDING: matrix_array(vectors_ND, absent),
        }
    )
