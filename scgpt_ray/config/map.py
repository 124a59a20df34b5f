"""What `map` is asked."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scgpt_ray.config.cells import CellSettings, ComputeSettings
from scgpt_ray.config.settings import Count, Fraction, Text


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
    """Folder for predictions.parquet, query.h5ad, metrics.json, report.html, umap.png and calibration.json."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the network for the query. auto: that of the index, or float32 where the query's devices lack it,
    such as CPUs for an index made on GPUs in float16."""
    label_columns: tuple[Text, ...] = ()
    """Labels to transfer. Default: all that the index keeps; with --calibrate-by without that column and those of
    --exclude-same."""
    truth_column: Text | None = None
    """obs column of the query with true labels of the first label column, for accuracy and macro-F1. Beside them stands
    PCA + kNN on the same cells, where the atlases of reference and query still lie on this machine's disk unchanged."""
    k: Annotated[int, Field(ge=1, le=1024)] = 10
    """Neighbours that vote."""
    exclude_same: tuple[Text, ...] = ()
    """Columns known to query and index (such as dataset_id donor_id): a cell that shares the query cell's own value in
    any of them is no neighbour."""
    neighbor_filter: Text | None = None
    """Which cells of the index may be neighbours: a condition on its label columns, as --obs-filter, such as
    "tissue == 'lung'"."""
    weighting: Literal["uniform", "distance"] = "uniform"
    """uniform: every neighbour has one vote. distance: the nearest has a whole vote, the farthest none."""
    balance: Text = "none"
    """Against references in which some types or datasets have most of the cells. label: votes for a label count less
    the more cells of the reference have it, so that rare types are found more often, also where they are not. A
    column of the index, such as dataset_id: each of its values has as much to say as any other. none: every neighbour
    counts the same."""
    calibrate_by: Text | None = None
    """Column of the index that tells independent samples apart, such as donor_id or dataset_id. Cells of the reference
    are then mapped with their own donor left out, and how often that is right gives each query cell the probability
    that its label is right. Default: no calibration."""
    calibration_cells: Count = 3000
    """Cells of the reference to calibrate with; of these, those that meet --neighbor-filter."""
    target_error: Fraction | None = None
    """Wanted share of wrong labels, such as 0.05: cells less sure than that needs become Unknown. Needs
    --calibrate-by."""
    false_rejection: Fraction | None = None
    """Share of cells, such as 0.01, that you would lose as Unknown although the reference has their type, so that
    cells far from everything in it become Unknown. Needs --calibrate-by."""
    term_column: Text | None = None
    """Label column of Cell Ontology terms: besides the term with most votes, each cell gets the most specific term
    that enough of its neighbours share, such as T cell where they are CD4 and CD8 T cells; none for no such column.
    Default: cell_type_ontology_term_id where it is among the labels to transfer."""
    term_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the votes that such a term needs, together with the terms below it."""

    @model_validator(mode="after")
    def _calibration_has_its_column(self) -> Self:
        if self.calibrate_by is None:
            alone = [name for name in ("target_error", "false_rejection") if getattr(self, name) is not None]
            if alone:
                raise ValueError(f"--{alone[0].replace('_', '-')} needs --calibrate-by")
        return self

    @model_validator(mode="after")
    def _what_is_left_out_has_no_labels(self) -> Self:
        twice = [name for name in self.label_columns if name in self.left_out]
        if self.calibrate_by is not None and twice:
            raise ValueError(
                f"--label-columns {twice[0]} cannot be calibrated: cells with the own {twice[0]} are left out"
            )
        return self

    @property
    def left_out(self) -> tuple[str, ...]:
        """Columns of which a cell of the calibration meets no neighbour with its own value."""
        return tuple(dict.fromkeys((*([self.calibrate_by] if self.calibrate_by else []), *self.exclude_same)))
