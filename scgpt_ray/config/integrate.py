"""The options of `integrate`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from scgpt_ray.config.settings import Settings, Text, Texts


class IntegrateSettings(Settings):
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
    """obs column of cell types that should stay separate; null, empty and `unknown` are not labels. Default: none, all
    cells are treated alike."""
    factor_columns: Texts = ()
    """More obs columns, text or numbers, whose effects are explained like those of --batch-column. Default: none."""
    replicate_column: Text | None = None
    """obs column of donors or samples, the units of the tests of factors: with fewer than three per level, nothing is
    claimed. Default: the first of donor_id, donor, individual, patient_id, patient, subject_id, subject, sample_id and
    sample that the embeddings carry with at least two values; without one, results are about these cells only."""
    counts: Text | None = None
    """Atlas with the counts of these cells, as for `embed --atlas`; for the PCA baseline and the genes behind an
    effect. Default: the embedded atlas, if it is unchanged on a disk of this machine."""
    max_cells: Annotated[int, Field(ge=16)] = 20_000
    """Most cells to evaluate; of more cells, a sample stratified by label and batch."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Random seed of the sample, clusterings, folds and plots."""

    @model_validator(mode="after")
    def _each_column_once(self) -> Self:
        columns = [self.label_column, self.batch_column, *self.factor_columns]
        if len(set(columns)) != len(columns):
            raise ValueError("--label-column, --batch-column and --factor-columns name a column twice")
        if len(set(self.embeddings)) != len(self.embeddings):
            raise ValueError("--embeddings names a folder twice")
        return self
