"""Embeddings as files that other tools open."""

from dataclasses import dataclass
from typing import Any

from scgpt_ray.atlas.embedding_soma import count_obs_rows
from scgpt_ray.atlas.soma import SomaSource
from scgpt_ray.config import ExportSettings
from scgpt_ray.errors import AtlasError, ConfigError
from scgpt_ray.parts.export import export_h5ad
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.publication import export_dataset, export_soma
from scgpt_ray.pipelines.raw_counts import named_atlas
from scgpt_ray.records import Plan
from scgpt_ray.storage import Folder


@dataclass(frozen=True)
class Exported:
    """A file or folder of embeddings.

    Attributes:
        output: Its path or URI.
        n_cells: Number of its cells.
    """

    output: str
    n_cells: int

    def text(self) -> str:
        """Summary for the terminal."""
        return f"{self.n_cells} cells: {self.output}"

    def to_dict(self) -> dict[str, Any]:
        """Values for the JSON line on stdout."""
        return {"n_cells": self.n_cells}


def export(settings: ExportSettings) -> Exported:
    """Write the embeddings of a finished `embed` to a file or folder.

    Raises:
        InputError: If the folder holds no finished run, or the output cannot be written.
    """
    folder, output = Folder.at(settings.embeddings), Folder.at(settings.output)
    about = settings.model_dump(include={"title", "license", "half"})
    if settings.to == "h5ad":
        n_cells = export_h5ad(folder, settings.output, half=settings.half)
    elif settings.to == "hf":
        n_cells = export_dataset(folder, output, **about)
    else:
        require_manifest(folder)
        n_rows = obs_rows(folder, settings.obs_rows)
        n_cells = export_soma(folder, output, n_rows, contact=settings.contact, **about)
    return Exported(settings.output, n_cells)


def obs_rows(folder: Folder, asked: int | None) -> int:
    """Rows of obs in the atlas that was embedded; of an .h5ad file, those up to the last embedded cell.

    Args:
        folder: Output folder of `embed`.
        asked: The number, if it is given; else it is read from the atlas.

    Raises:
        ConfigError: If the atlas cannot be read, or has more rows than that.
    """
    plan = Plan.read(folder)
    if plan is None:
        if asked is None:
            raise _unknown(f"{folder.where(Plan.file)} is missing")
        return asked
    least = plan.partitions[-1].last + 1
    if asked is not None:
        if asked < least:
            raise ConfigError(
                f"--obs-rows {asked}", expected=f"{least} or more: the cell with soma_joinid {least - 1} is embedded",
                remedy="drop it, to read the number from the atlas",
            )  # fmt: skip
        return asked
    if plan.fingerprint.cells.get("kind") != "soma":
        return least
    try:
        source = named_atlas(str(plan.settings["atlas"]), plan)
        assert isinstance(source, SomaSource), source
        return count_obs_rows(source)
    except AtlasError as error:
        raise _unknown(error.found) from error


def _unknown(found: str) -> ConfigError:
    return ConfigError(
        f"the number of rows of obs is not known: {found}",
        expected="the atlas that was embedded, where it was",
        remedy="give the number to --obs-rows",
    )
