"""The options of `map`."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from scgpt_ray.config.cells import CellSettings, ComputeSettings
from scgpt_ray.config.execution import TrackingSettings
from scgpt_ray.config.settings import Count, Fraction, Precision, Settings, Text, Texts, option_name

AUTO = "auto"


class VoteSettings(Settings):
    """How neighbours vote on the label of a query cell."""

    group = "Neighbours and votes"

    label_columns: Texts = ()
    """Label columns to transfer. Default: all of the index that have labels, but no numbers and no identifiers such as
    donor_id, dataset_id or barcode. Reference cells whose label is null, empty, `unknown`, `nan` or `none` do not
    vote."""
    truth_column: Text | None = None
    """obs column of the query with the true labels of the first label column: adds accuracy and macro-F1, and PCA + kNN
    as a baseline if both atlases are unchanged on disks of this machine. Default: none."""
    truth_map: Text | None = None
    """File of two columns, separated by tabs or commas: true labels of the query, and the labels that the reference has
    for them. Default: they have the same names."""
    baseline_values: Literal["log1p", "stored"] = "log1p"
    """Values that PCA + kNN is made of. log1p: counts scaled to 10,000 per cell, then log(1 + x); stored: as they stand
    in the layers that were embedded, and then both atlases must be there."""
    k: Annotated[int, Field(ge=1, le=1024)] = 10
    """Number of neighbours that vote."""
    weighting: Literal["uniform", "distance"] = "uniform"
    """Weight of a vote. uniform: the same for all; distance: from 1 for the nearest neighbour to 0 for the farthest."""
    balance_by: Text | None = None
    """Column of the index by whose values votes are balanced: each vote is weighted by 1/frequency of its value. By the
    label column, rare types are found more often, with more false positives; by dataset_id, small datasets count as
    much as large ones. Default: none, no correction."""
    exclude_same: Texts = ()
    """Columns of both query and index, such as dataset_id donor_id: cells that share a value with the query cell in any
    of them are not its neighbours. Default: none."""
    neighbor_filter: Text | None = None
    """Condition on label columns of the index that neighbours must meet: "tissue == 'lung'". Default: none."""


class CalibrationSettings(Settings):
    """Probabilities of labels, and rejection of uncertain ones."""

    group = "Calibration and rejection"

    calibrate_by: Text | None = AUTO
    """Column of the index that separates independent samples, such as donor_id, with three or more values: reference
    cells are mapped without their own donor, and how often that is right gives each query cell the probability that its
    label is right. auto: that of the index (fitness.json), if it has one; none: no calibration."""
    calibration_cells: Count = 3000
    """Number of reference cells to sample for calibration, as many of each value of --calibrate-by."""
    target_error: Fraction | None = None
    """Fraction of accepted labels of a new donor or dataset that may be wrong, such as 0.05, with a confidence of 80 %:
    cells whose probability is too low for that become Unknown. Refused if held-out donors exceed it. Requires a
    calibration. Default: none, no rejection."""
    false_rejection: Fraction | None = None
    """Fraction of cells of known types that may become Unknown because they are far from the reference, such as 0.01:
    sets the distance beyond which a cell is rejected. Requires a calibration. Default: none, no rejection by
    distance."""


class TermSettings(Settings):
    """Roll-up of labels along the Cell Ontology."""

    group = "Cell Ontology"

    term_column: Text | None = None
    """Label column of Cell Ontology terms. Each cell also gets the most specific term that enough of its votes share,
    such as T cell for votes on CD4 and CD8 T cells. Default: cell_type_ontology_term_id, if it is transferred."""
    without_terms: bool = False
    """Do not roll up terms."""
    term_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Fraction of the votes that a rolled-up term needs, including those on more specific terms."""


class MapSettings(VoteSettings, CalibrationSettings, TermSettings, CellSettings, ComputeSettings, TrackingSettings):
    """Options of `map`."""

    verb = "map"
    group = "Input and output"
    examples = (
        "scgpt-ray map --query demo/atlas --obs-filter \"split == 'query'\" --index demo/index --checkpoint demo"
        " --output mapped",
        "scgpt-ray map --query demo/atlas --obs-filter \"split == 'query'\" --index demo/index --checkpoint demo"
        " --output mapped-evaluated --truth-column cell_type",
        "scgpt-ray map --query demo/atlas --obs-filter \"split == 'query'\" --index demo/index --checkpoint demo"
        " --output mapped-balanced --k 20 --weighting distance --balance-by cell_type",
    )

    query: Text
    """Cells to map: a SOMA experiment or .h5ad file (path or s3:// URI), or census:RELEASE[/ORGANISM]."""
    index: Text
    """Output folder of `index`: a path, an s3:// URI or hf://owner/repo[@revision][/subfolder], which is downloaded to
    the cache. The embeddings that it was built from are not needed."""
    checkpoint: Text | None = None
    """Checkpoint that the reference was embedded with: a name, a folder or hf://..., as for `embed`. Default: the one
    that the index names."""
    output: Text
    """Folder for predictions.parquet (parts), query.h5ad, metrics.json, report.html, umap.png and calibration.json; a
    path or s3:// URI."""
    precision: Precision = "auto"
    """Arithmetic of the network for the query. auto: that of the index, or float32 if the query's devices lack it, such
    as CPUs for an index made on GPUs in float16."""

    @field_validator("calibrate_by")
    @classmethod
    def _none_is_no_column(cls, column: str | None) -> str | None:
        return None if column == "none" else column

    @model_validator(mode="after")
    def _required_options(self) -> Self:
        if self.calibrate_by is None:
            alone = [name for name in ("target_error", "false_rejection") if getattr(self, name) is not None]
            if alone:
                raise ValueError(f"{option_name(alone[0])} needs a calibration, not --calibrate-by none")
        if self.truth_map is not None and self.truth_column is None:
            raise ValueError("--truth-map needs --truth-column")
        if self.without_terms and self.term_column is not None:
            raise ValueError("give one of --term-column and --without-terms")
        return self

    @model_validator(mode="after")
    def _excluded_columns_have_no_labels(self) -> Self:
        twice = [name for name in self.label_columns if name in self.excluded_columns]
        if self.calibrate_by not in (None, AUTO) and twice:
            raise ValueError(
                f"--label-columns {twice[0]} cannot be calibrated: cells with the same {twice[0]} are excluded"
            )
        return self

    @property
    def excluded_columns(self) -> tuple[str, ...]:
        """Columns in which a calibration cell must differ from its neighbours."""
        group = [] if self.calibrate_by in (None, AUTO) else [self.calibrate_by]
        return tuple(dict.fromkeys((*group, *self.exclude_same)))
