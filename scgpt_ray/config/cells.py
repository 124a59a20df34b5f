"""Options that several verbs share: selection and reading of cells, and distribution of the work."""

from typing import Literal, Self

from pydantic import field_validator, model_validator

from scgpt_ray.config.execution import ExecutionSettings
from scgpt_ray.config.settings import Count, Fraction, Settings, Text, Texts, Timestamp, parse_duration


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
    vocabulary; version suffixes (.12) of Ensembl ids are ignored. Default: for human Ensembl ids the table that ships
    with scgpt-ray (GENCODE 44), else none."""
    min_coverage: Fraction = 0.5
    """Smallest fraction of counts in genes of the vocabulary, 0 to 1; below it the run stops with an error."""
    measurement: Text = "RNA"
    """SOMA measurement of the counts; ignored for .h5ad files."""
    layer: Text | None = None
    """Layer of the counts. SOMA: a layer of X; default: raw. h5ad: X, raw for .raw, or a layer; default: the first of
    the layer counts, raw and X that holds integers, or X if none does."""
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


class DeviceSettings(ExecutionSettings):
    """Devices and actors. None of these options changes the output."""

    group = "Compute"

    cells_per_partition: Count | None = None
    """Cells per partition, the unit of reading, retry and resume; fixed by the first run into an output folder.
    Default: 8192 with GPUs, 256 without."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """What embeds. gpu: GPUs, for which a cluster is asked if it has none yet; cpu: CPUs. auto: GPUs with --gpus or if
    any are there, else CPUs."""
    gpus: Count | None = None
    """Most GPUs to use, also of nodes that join later. Default: all that are there at the start."""
    min_gpus: Count = 1
    """GPUs of a cluster to wait for before the work starts, with --gpus or --device gpu."""
    actors_per_gpu: Count = 1
    """Number of actors per GPU; 2 may overlap transfers with computation (not measured)."""
    actors: Count | None = None
    """Number of CPU actors, when no GPU is used. Default: one per node, with all of its cores."""

    @model_validator(mode="after")
    def _one_kind_of_actor(self) -> Self:
        if self.gpus and self.actors:
            raise ValueError("give one of --gpus and --actors")
        if (self.device == "gpu" and self.actors) or (self.device == "cpu" and self.gpus):
            raise ValueError(
                f"--device {self.device} and {'--actors' if self.actors else '--gpus'} contradict each other"
            )
        if self.actors_per_gpu > 1 and self.asked_device == "cpu":
            raise ValueError("--actors-per-gpu needs GPUs: drop it, or --actors and --device cpu")
        if self.gpus and self.min_gpus > self.gpus:
            raise ValueError("--min-gpus is more than --gpus")
        return self

    @property
    def asked_device(self) -> Literal["gpu", "cpu"] | None:
        """The device that the options name; None if it is that which is there."""
        if self.device != "auto":
            return self.device
        return "gpu" if self.gpus else "cpu" if self.actors else None


class GpuWaitSettings(Settings):
    """Patience with a cluster that starts GPUs."""

    group = "Compute"

    wait_for_gpus: Text = "20m"
    """How long to wait for the GPUs of --min-gpus at most, with unit s, m or h."""

    @field_validator("wait_for_gpus")
    @classmethod
    def _a_time(cls, text: str) -> str:
        parse_duration(text)
        return text


class ComputeSettings(DeviceSettings, GpuWaitSettings):
    """Distribution of the work. None of these options changes the output."""

    group = "Compute"
