"""How cells are selected and read, and how the work on them is spread: what several verbs ask."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from scgpt_ray.config.settings import Count, Fraction, Settings, Text
from scgpt_ray.schema import RESERVED


class CellSettings(Settings):
    """How cells are selected and read, wherever they lie."""

    measurement: Text = "RNA"
    """SOMA measurement that holds the counts; not used for .h5ad files."""
    layer: Text | None = None
    """X layer. SOMA: a layer name, default raw. h5ad: X (default), raw for .raw, or the name of a layer."""
    obs_filter: Text | None = None
    """Which cells, as a condition on obs columns: "tissue == 'blood' and nnz > 500 and sex in ['male']"."""
    obs_columns: tuple[Text, ...] = ()
    """obs columns to carry along into the output."""
    gene_columns: tuple[Text, ...] = ("feature_name", "index")
    """var columns with gene names, in order; the first whose value is in the vocabulary names the gene. `index` is
    var's own index. A column of this list that var lacks is an error unless the list is the default."""
    gene_table: Text | None = None
    """Two-column CSV (gene id, symbol; a header is allowed) through which names that are not in the vocabulary are
    translated, such as Ensembl ids; version suffixes (.12) are ignored."""
    min_coverage: Fraction = 0.5
    """Least fraction of counts that must belong to genes of the vocabulary."""
    snapshot: Annotated[int, Field(ge=1)] | None = None
    """SOMA timestamp to read at, in ms since 1970; default: when the run starts. Not for .h5ad files."""
    tiledb_config: dict[str, str] = Field(default_factory=dict)
    """TileDB settings for remote atlases, KEY=VALUE, such as vfs.s3.region=us-west-2."""

    @field_validator("obs_columns")
    @classmethod
    def _not_reserved(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        taken = sorted(RESERVED.intersection(columns))
        if taken:
            raise ValueError(f"{', '.join(taken)} would clash with an output column of that name")
        if len(set(columns)) != len(columns):
            raise ValueError("a column is named twice")
        return columns


class ComputeSettings(Settings):
    """How the work is spread. Nothing here changes a number in the output."""

    cells_per_partition: Count | None = None
    """Cells per partition: the unit of reading, retry and resume. Default: 8192 with GPUs, 256 without. Fixed by the
    first run into an output folder."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs to use. Default: all of the cluster; 0 forces CPU actors."""
    actors_per_gpu: Count = 1
    """Actors that share a GPU: more than one may keep it busier while tokens and embeddings travel. The default was not
    measured: try 2."""
    actors: Count | None = None
    """CPU actors, when no GPU is used. Default: one per node, with all of its cores."""

    @model_validator(mode="after")
    def _one_kind_of_actor(self) -> Self:
        if self.gpus and self.actors:
            raise ValueError("give one of --gpus and --actors")
        if self.actors_per_gpu > 1 and (self.actors or self.gpus == 0):
            raise ValueError("--actors-per-gpu needs GPUs: drop it, or --actors and --gpus 0")
        return self
