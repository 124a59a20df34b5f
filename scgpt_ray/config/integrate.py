"""The options of `integrate`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scgpt_ray.config.execution import StorageSettings, TrackingSettings
from scgpt_ray.config.settings import Seed, Settings, Text, Texts


class BaselineSettings(Settings):
    """The principal components that embeddings are compared with."""

    group = "PCA baseline"

    highly_variable: Annotated[int, Field(ge=0)] = 2000
    """Number of highly variable genes; 0: all genes."""
    flavor: Literal["seurat", "seurat_v3"] = "seurat"
    """How genes are ranked. seurat: by normalised dispersion; seurat_v3: by the variance of standardised values."""
    baseline_values: Literal["log1p", "stored"] = "log1p"
    """Values that are ranked and decomposed. log1p: counts scaled to 10,000 per cell, then log(1 + x); stored: as they
    stand in the layer that was embedded, as in scGPT's tutorials; then the atlas must be there."""
    counts_layer: Text | None = None
    """Layer of the raw counts, where another one was embedded; then the atlas must be there. Default: the layer that
    was embedded."""


class IntegrateSettings(BaselineSettings, TrackingSettings, StorageSettings):
    """Options of `integrate`."""

    verb = "integrate"
    group = "Integration"
    examples = (
        "scgpt-ray integrate --embeddings demo/untrained/embeddings --batch-column split --output integration",
        "scgpt-ray integrate --embeddings demo/untrained/embeddings --batch-column split --label-column cell_type"
        " --output integration-by-type",
        "scgpt-ray integrate --embeddings demo/untrained/embeddings --batch-column cell_type --factor-columns n_genes"
        " --output factors",
    )

    embeddings: Annotated[Texts, Field(min_length=1)]
    """Output folder of `embed`, or several of the same cells to compare. After the first, also Parquet files
    (name.parquet) of external embeddings: soma_joinid or obs_id, and a list column `embedding` or one column per
    dimension. They must contain all cells embedded in the first; other rows are ignored."""
    batch_column: Text
    """obs column of the batches that should mix, such as donor_id or assay; the embeddings must carry it."""
    output: Text
    """Folder for metrics.json, umap.png, umap-batch.png and report.html; a path or s3:// URI."""
    label_column: Text | None = None
    """obs column of cell types that should stay separate; null, empty and `unknown` are not labels. Default: none;
    batch mixing and effects are then evaluated without cell types."""
    factor_columns: Texts = ()
    """More obs columns, text or numbers, whose effects are explained like those of --batch-column. Default: none."""
    condition_columns: Texts = ()
    """obs columns of biology that should stay, such as treatment or disease: their effects are explained, and batches
    are compared only among cells of equal conditions, so that no score asks for these to be erased. Default: none."""
    replicate_column: Text | None = None
    """obs column of donors or samples, the units of the tests of factors: with fewer than three per level, nothing is
    claimed. Default: the first of donor_id, donor, individual, patient_id, patient, subject_id, subject, sample_id and
    sample that the embeddings carry with at least two values; without one, results are about these cells only."""
    counts: Text | None = None
    """Atlas with the counts of these cells, as for `embed --atlas`; for the PCA baseline and to find the genes that
    explain an effect. Default: the embedded atlas, if it is unchanged on a disk of this machine."""
    max_cells: Annotated[int, Field(ge=16)] = 20_000
    """Largest number of cells to evaluate; if there are more, a sample stratified by label and batch is drawn."""
    seed: Seed = 0
    """Random seed of the sample, clusterings, folds and plots."""

    @model_validator(mode="after")
    def _each_column_once(self) -> Self:
        columns = [self.label_column, self.batch_column, *self.factor_columns, *self.condition_columns]
        if len(set(columns)) != len(columns):
            raise ValueError(
                "--label-column, --batch-column, --factor-columns and --condition-columns name a column twice"
            )
        if len(set(self.embeddings)) != len(self.embeddings):
            raise ValueError("--embeddings names a folder twice")
        return self
