"""What `integrate` is asked."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from scgpt_ray.config.settings import Settings, Text


class IntegrateSettings(Settings):
    """Evaluate embeddings of several batch keys together: integration metrics, batch effects explained, pictures."""

    verb = "integrate"

    embeddings: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Output folder of `embed`; or several of them, of the same cells, to compare. After the first, also Parquet files
    (name.parquet) of external embeddings: soma_joinid or obs_id, and a column embedding of lists or a column for each
    dimension. They must have all cells embedded in the first; rows of others are left out."""
    batch_column: Text
    """Carried obs column of the batch keys that should mix, such as donor_id or assay."""
    output: Text
    """Folder for metrics.json, umap.png, umap-batch.png and report.html."""
    label_column: Text | None = None
    """Carried obs column of cell types that should stay apart. Null, empty and `unknown` are no label. Default: none,
    and all cells are treated alike."""
    factor_columns: tuple[Text, ...] = ()
    """More carried obs columns whose effects are explained beside those of --batch-column; text or numbers."""
    counts: Text | None = None
    """Where the counts of these cells are, as --atlas of embed, for the baseline of principal components and the genes
    behind an effect. Default: the atlas that was embedded, where it still lies on this machine's disks unchanged."""
    max_cells: Annotated[int, Field(ge=16)] = 20_000
    """Most cells to evaluate; of more, a sample stratified by label and batch key."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the sample, the clusterings, the folds and the pictures."""

    @model_validator(mode="after")
    def _each_column_once(self) -> Self:
        columns = [self.label_column, self.batch_column, *self.factor_columns]
        if len(set(columns)) != len(columns):
            raise ValueError("--label-column, --batch-column and --factor-columns name a column twice")
        if len(set(self.embeddings)) != len(self.embeddings):
            raise ValueError("--embeddings names a folder twice")
        return self
