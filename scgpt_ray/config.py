"""What a run is asked to do: one frozen settings class per verb.

A class here is at once the YAML schema, the command line and the arguments of the Python function of that verb: the
text under a field is its `--help`. Options beat the file, the file beats the defaults, and an unknown key is an error.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from scgpt_ray.errors import ConfigError
from scgpt_ray.schema import RESERVED

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """Base of all settings: frozen, validated at birth, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    verb: ClassVar[str]
    """Name of the verb on the command line."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Validate plain values.

        Raises:
            ConfigError: With every mistake, in one line.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = "; ".join(_mistake(detail) for detail in error.errors())
            raise ConfigError(
                f"{cls.verb}: {found}",
                expected="the options of this verb, with values in their range",
                remedy=f"see scgpt-ray {cls.verb} --help",
            ) from None

    @classmethod
    def load(cls, path: str | None, options: dict[str, Any]) -> Self:
        """Join a YAML file and options; options win.

        Args:
            path: A YAML file of this verb's keys, or None.
            options: Field name -> value, only what was given.
        """
        return cls.of({**(_read_yaml(path) if path else {}), **options})


def _mistake(detail: Any) -> str:
    name = "--" + ".".join(str(part) for part in detail["loc"]).replace("_", "-")
    match detail["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            return f"unknown option {name}"
        case "value_error" if not detail["loc"]:
            return str(detail["ctx"]["error"])
        case _:
            return f"{name}: {detail['msg'].lower()}, found {detail['input']!r}"


def _read_yaml(path: str) -> dict[str, Any]:
    remedy = "give a YAML file of `option: value` lines"
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: {error}", expected="a readable file", remedy=remedy) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: {error}", expected="valid YAML", remedy=remedy) from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: a {type(values).__name__}", expected="a mapping", remedy=remedy)
    return {str(key).replace("-", "_"): value for key, value in values.items()}


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
    """GPU actors. Default: one for each GPU of the cluster; 0 forces CPU actors."""
    actors: Count | None = None
    """CPU actors, when no GPU is used. Default: one per node, with all of its cores."""

    @model_validator(mode="after")
    def _one_kind_of_actor(self) -> Self:
        if self.gpus and self.actors:
            raise ValueError("give one of --gpus and --actors")
        return self


class EmbedSettings(CellSettings, ComputeSettings):
    """Embed every cell of an atlas with scGPT; Parquet parts, resumable."""

    verb = "embed"

    atlas: Text
    """Where the cells are: a SOMA experiment (path or s3:// URI), an .h5ad file, or census:VERSION (human)."""
    checkpoint: Text
    """Checkpoint folder: args.json, vocab.json, and best_model.pt or model.safetensors."""
    output: Text
    """Folder for plan.json, genes.parquet, parts/ and manifest.json; a path or s3:// URI."""
    max_length: Annotated[int, Field(ge=2)] = 1200
    """Most tokens per cell, <cls> included; longer cells are sampled."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of ties and sampling."""
    ties: Literal["random", "top"] = "random"
    """Which bin equal counts get: a draw from the bins they span (as upstream embeds), or the top one (as upstream
    pretrains)."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the network; embeddings are stored as float32 either way."""


class IndexSettings(Settings):
    """Build a sharded faiss index over embeddings, with labels beside it and recall measured."""

    verb = "index"

    embeddings: Text
    """Output folder of a finished `embed`."""
    output: Text
    """Folder for index.json, template.faiss, shards and labels."""
    label_columns: tuple[Text, ...] = ()
    """obs columns to keep beside the index. Default: all that the embeddings carry."""
    factory: Text = "auto"
    """faiss factory string, such as IVF4096,SQ8; `auto` chooses by the number of cells and --memory-budget."""
    target_recall: Fraction = 0.95
    """Recall@10 against exact search that nprobe is raised for; measured on a sample, written to index.json."""
    memory_budget: Text | None = None
    """Most memory the whole index may take when searched, such as 8GB; only read by factory auto."""
    shards: Count | None = None
    """Number of index shards. Default: one per million cells."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the training and recall samples."""

    @field_validator("memory_budget")
    @classmethod
    def _is_size(cls, text: str | None) -> str | None:
        if text is not None:
            parse_bytes(text)
        return text


class MapSettings(CellSettings, ComputeSettings):
    """Map query cells onto an indexed reference: neighbours, labels by vote, confidence."""

    verb = "map"

    query: Text
    """Where the query cells are: as --atlas of embed."""
    index: Text
    """Output folder of `index`."""
    checkpoint: Text
    """The checkpoint the reference was embedded with."""
    output: Text
    """Folder for predictions.parquet, query.h5ad, metrics.json and report.html."""
    label_columns: tuple[Text, ...] = ()
    """Labels to transfer. Default: all that the index keeps."""
    truth_column: Text | None = None
    """obs column of the query with true labels of the first label column, for accuracy and macro-F1."""
    k: Annotated[int, Field(ge=1, le=1024)] = 10
    """Neighbours that vote."""
    exclude_same: Text | None = None
    """A column known to query and index (such as donor_id): neighbours with the query cell's own value do not vote."""


class ValidateSettings(Settings):
    """Audit an output folder: every planned cell once, finite, unit norm, one fingerprint."""

    verb = "validate"

    embeddings: Text | None = None
    """Output folder of `embed`."""
    index: Text | None = None
    """Output folder of `index`."""

    @model_validator(mode="after")
    def _one_folder(self) -> Self:
        if (self.embeddings is None) == (self.index is None):
            raise ValueError("give one of --embeddings and --index")
        return self


class ExportSettings(Settings):
    """Write embeddings into a file other tools open."""

    verb = "export"

    embeddings: Text
    """Output folder of a finished `embed`."""
    to: Literal["h5ad"] = "h5ad"
    """Format: h5ad has obsm["X_scGPT"] and the carried obs columns."""
    output: Text
    """File to write."""


class DemoSettings(Settings):
    """Run the whole chain on 700 real blood cells: atlas, embeddings, index, labels, picture."""

    verb = "demo"

    output: Text = "demo"
    """Folder to write everything to."""
    checkpoint: Text | None = None
    """Checkpoint folder. Default: a small one with random weights, made on the spot."""


class BenchmarkSettings(Settings):
    """Measure a stage on this machine: cells/s and what it is made of, as a table and as JSON lines."""

    verb = "benchmark"

    stage: Literal["model", "tokens", "read", "flow", "index"] = "model"
    """What to measure: the network, the tokeniser, reading, Ray against a plain loop, or faiss."""
    device: Text = "cpu"
    """Where the network computes: cpu, cuda or cuda:N."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the network."""
    attention: Literal["auto", "cells", "blocks", "triton", "varlen", "FA3", "FA4"] = "auto"
    """The network's way to attend; auto takes the fastest that is installed."""
    tokens: Annotated[str, Field(pattern=r"^([1-9]\d*|ragged)$")] | None = None
    """Tokens of a cell: a number, or ragged (250 to 1,200, 600 on average). Default: ragged; 2000 for the stage tokens
    and 2100 for read, before sampling."""
    cells: Count | None = None
    """Cells to measure with; vectors for the stage index. Default: what takes seconds."""
    lengths_from: Text | None = None
    """An .h5ad file whose cells give the stage model its lengths, in place of --tokens."""
    checkpoint: Text | None = None
    """Checkpoint folder. Default: random weights of whole-human's size."""
    against: Literal["naive"] | None = None
    """naive: measure also the padded, cell-by-cell way in plain torch (stages model and tokens), and the ratio."""
    threads: Count | None = None
    """CPU threads. Default: torch's own; one for the stage index."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Time for the runs of one figure [default: 10]; for the stage flow, what a partition takes [default: 0.5]."""


_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str) -> int:
    """Read a size such as 8GB (decimal units) as bytes.

    Raises:
        ValueError: If it is not a positive number with KB, MB, GB, TB or nothing behind it.
    """
    cleaned = text.strip().upper()
    number = cleaned.rstrip("KMGTB")
    unit = cleaned[len(number) :]
    try:
        size = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a size like 8GB") from None
    if size <= 0:
        raise ValueError(f"{text!r} is not a positive size")
    return size
