"""Embeddings as a file that other tools open."""

from dataclasses import dataclass
from typing import Any

from scgpt_ray.config import ExportSettings
from scgpt_ray.parts.export import export_h5ad
from scgpt_ray.storage import Folder


@dataclass(frozen=True)
class Exported:
    """A file of embeddings.

    Attributes:
        output: Path or URI of the file.
        n_cells: Number of its cells.
    """

    output: str
    n_cells: int

    def text(self) -> str:
        """Summary for the terminal."""
        return f'{self.n_cells} cells with obsm["X_scGPT"]: {self.output}'

    def to_dict(self) -> dict[str, Any]:
        """Values for the JSON line on stdout."""
        return {"n_cells": self.n_cells}


def export(settings: ExportSettings) -> Exported:
    """Write the embeddings of a finished `embed` to a file.

    Raises:
        InputError: If the folder holds no finished run, or the file cannot be written.
    """
    return Exported(settings.output, export_h5ad(Folder.at(settings.embeddings), settings.output, half=settings.half))
