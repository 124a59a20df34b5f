"""Options that several verbs share: selection and reading of cells, and distribution of the work."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from scgpt_ray.config.execution import ExecutionSettings
from scgpt_ray.config.settings import Count, Fraction, Settings, Text, Texts, Timestamp


class CellSettings(Settings):
    """Selection and reading of cells; the same for all kinds of atlas."""

    group = "Cells and genes"

    obs_filter: Text | None = None
    """Condition on obs columns that selects cells: "tissue == 'blood' and nnz > 500 and sex in ['male']".
    Default: all cells."""
    include_duplicates: bool = False
    """Also take cells of a SOMA experiment whose obs column is_primary_data is not true: in the Census, copies of cells
    of other data sets. Without it they are left out, unless --obs-filter names that column."""
    obs_columns: Texts = ()
    """obs columns to copy to the output. Default: none."""
    gene_columns: Texts = ("feature_name", "index")
    """var columns with gene names, in order of preference; `index` is the index of var. A gene gets the first of its
    names that is in the vocabulary. A missing column is an error, except in the default list."""
    gene_table: Text | None = None
    """CSV (path or s3:// URI) of gene id and symbol (header optional) that translates names missing from the
    vocabulary, such as Ensembl ids; version suffixes (.12) are ignored. Default: none."""
    min_coverage: Fraction = 0.5
    """Smallest fraction of counts in genes of the vocabulary, 0 to 1; below it the run stops with an error."""
    measurement: Text = "RNA"
    """SOMA measurement of the counts; ignored for .h5ad files."""
    layer: Text | None = None
    """Layer of the counts. SOMA: a layer of X; default: raw. h5ad: X (the default), raw for .raw, or a layer."""
    snapshot: Timestamp | None = None
    """SOMA timestamp to read at, in ms since 1970; not for .h5ad files. Default: its last write."""
    census_directory: Text | None = None
    """URL of the file that lists the Census releases (release.json), next to it mirrors.json. Default:
    $SCGPT_RAY_CENSUS_DIRECTORY, or the public one."""
    census_mirror: Text | None = None
    """Mirror of the Census to read from. Default: the one that mirrors.json names."""

    @field_validator("obs_columns")
    @classmethod
    def _not_reserved(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if not columns:
            return columns
        # Imported here because it imports numpy and pyarrow, which would slow down `--help`.
        from scgpt_ray.schema import RESERVED

        taken = sorted(RESERVED.intersection(columns))
        if taken:
            raise ValueError(f"{', '.join(taken)} would clash with an output column of that name")
        if len(set(columns)) != len(columns):
            raise ValueError("a column is named twice")
        return columns


class ComputeSettings(ExecutionSettings):
    """Distribution of the work. None of these options changes the output."""

    group = "Compute"

    cells_per_partition: Count | None = None
    """Cells per partition, the unit of reading, retry and resume; fixed by the first run into an output folder.
    Default: 8192 with GPUs, 256 without."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """Number of GPUs to use; 0 forces CPU actors. Default: all of the cluster."""
    actors_per_gpu: Count = 1
    """Number of actors per GPU; 2 may overlap transfers with computation (not measured)."""
    actors: Count | None = None
    """Number of CPU actors, when no GPU is used. Default: one per node, with all of its cores."""

    @model_validator(mode="after")
    def _one_kind_of_actor(self) -> Self:
        if self.gpus and self.actors:
            raise ValueError("give one of --gpus and --actors")
        if self.actors_per_gpu > 1 and (self.actors or self.gpus == 0):
            raise ValueError("--actors-per-gpu needs GPUs: drop it, or --actors and --gpus 0")
        return self
