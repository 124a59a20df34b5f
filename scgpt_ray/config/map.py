"""What `map` is asked."""

from typing import Annotated

from pydantic import Field

from scgpt_ray.config.cells import CellSettings, ComputeSettings
from scgpt_ray.config.settings import Text


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
