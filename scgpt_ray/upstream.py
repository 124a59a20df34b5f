"""Functions of upstream scGPT by their own names and arguments."""

import logging
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Literal

from scgpt_ray.atlas.anndata_file import NAME, AnnData, AnnDataCells, read_anndata
from scgpt_ray.atlas.embedding_h5ad import OBSM_KEY
from scgpt_ray.atlas.layers import X
from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.network.embedder import has_gpu
from scgpt_ray.pipelines.in_memory import embed_cells

logger = logging.getLogger(__name__)


def embed_data(
    adata_or_file: AnnData | str | PathLike[str],
    model_dir: str | PathLike[str],
    gene_col: str = "feature_name",
    max_length: int = 1200,
    batch_size: int = 64,  # noqa: ARG001 - upstream's argument; microbatches are cut by tokens here
    obs_to_save: str | Sequence[str] | None = None,
    device: str = "cuda",
    use_fast_transformer: bool = True,  # noqa: ARG001 - upstream's argument; attention is always fused here
    return_new_adata: bool = False,
    precision: str = "auto",
    min_coverage: float = 0.5,
    samples: int = 1,
    pooling: Literal["cls", "mean"] = "cls",
) -> AnnData:
    """Embed cells in this process, as upstream's `scgpt.tasks.embed_data` does; no Ray.

    `batch_size` and `use_fast_transformer` are taken and have no effect on the result. Unlike upstream, a cell's
    embedding depends on nothing but the cell, and a cell without genes of the vocabulary gets NaN instead of a crash.

    Args:
        adata_or_file: Cells, or an .h5ad file of them; X is embedded.
        model_dir: Checkpoint folder, or a name that `scgpt-ray checkpoints` lists.
        gene_col: Column of var with gene names or human Ensembl ids, or "index".
        max_length: Most tokens per cell, <cls> included.
        batch_size: No effect.
        obs_to_save: Columns of obs to keep in a new AnnData.
        device: "cuda", which without a GPU means "cpu", with a warning (as upstream), or "cpu".
        use_fast_transformer: No effect.
        return_new_adata: Return an AnnData with the embeddings as X instead of the cells.
        precision: "float32", "bfloat16" or "float16"; "auto" is float16 on CUDA (as upstream) and float32 on a CPU.
        min_coverage: Smallest fraction of counts in genes of the vocabulary, 0 to 1.
        samples: Number of seeds of ties and sampling over which the embedding of a cell is averaged.
        pooling: What becomes the embedding: "cls", the row of <cls> (as upstream), or "mean", the mean over genes.

    Returns:
        The cells, reduced to the genes of the vocabulary, with obsm["X_scGPT"] float32 [n_cells, d]; or the new
        AnnData.

    Raises:
        AtlasError: If the cells cannot be read or are not counts.
        CheckpointError: If the checkpoint cannot be used.
        GeneCoverageError: If genes of the vocabulary hold too few of the counts; upstream embeds what is left.
        ConfigError: If `obs_to_save` names a column that obs lacks.
    """
    adata = adata_or_file if isinstance(adata_or_file, AnnData) else read_anndata(Path(adata_or_file))
    columns = [obs_to_save] if isinstance(obs_to_save, str) else list(obs_to_save or [])
    lacking = [column for column in columns if column not in adata.obs]
    if lacking:
        raise ConfigError(
            f"obs_to_save {', '.join(lacking)}",
            expected=f"columns of obs ({', '.join(map(str, adata.obs))})",
            remedy="name those",
        )
    settings = EmbedSettings.of(
        {
            "atlas": NAME,
            "checkpoint": fspath(model_dir),
            "output": NAME,
            "layer": X,
            "gene_columns": (gene_col,),
            "min_coverage": min_coverage,
            "max_length": max_length,
            "precision": precision,
            "samples": samples,
            "pooling": pooling,
        }
    )
    if device == "cuda" and not has_gpu():
        logger.warning("no GPU is there; embedding on the CPU")
        device = "cpu"
    embedded = embed_cells(AnnDataCells.of(adata, X), settings, device)
    embeddings = embedded.vectors()
    if return_new_adata:
        return AnnData(X=embeddings, obs=adata.obs[columns] if columns else None)
    kept = adata[:, embedded.has_token].copy()
    kept.obsm[OBSM_KEY] = embeddings
    return kept
