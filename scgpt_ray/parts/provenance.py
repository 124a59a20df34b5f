"""Where embeddings come from, as published files say it: without paths of this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from scgpt_ray.identity import Fingerprint
from scgpt_ray.network.checkpoint_files import DEMO
from scgpt_ray.network.published import PUBLISHED
from scgpt_ray.records import Plan
from scgpt_ray.storage import Folder

DOI = "10.1038/s41592-024-02201-0"
"""Of the article on scGPT."""

CITATION = f"""\
Cui, H., Wang, C., Maan, H. et al. scGPT: toward building a foundation model for single-cell multi-omics using
generative AI. Nature Methods 21, 1470-1480 (2024). https://doi.org/{DOI}"""

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Provenance:
    """Where embeddings come from.

    Attributes:
        fingerprint: What made the numbers.
        checkpoint: Name of the checkpoint; that of its folder if it was not published.
        coverage: Share of the counts whose gene is in the vocabulary; None if unknown.
    """

    fingerprint: Fingerprint
    checkpoint: str
    coverage: float | None

    @classmethod
    def of(cls, folder: Folder, fingerprint: Fingerprint, coverage: Mapping[str, Any]) -> "Provenance":
        """That of the output folder of `embed`, with what its plan says of the checkpoint's name."""
        plan = Plan.read(folder)
        asked = str(plan.settings.get("checkpoint", "")) if plan else ""
        return cls(fingerprint, checkpoint_name(str(fingerprint.model["weights"]), asked), coverage.get("fraction"))

    @property
    def atlas(self) -> str:
        """Release of the Census and organism, a URI, or the name of a file or folder."""
        cells = self.fingerprint.cells
        name = public_name(str(cells["uri"]))
        return f"census:{cells['release']}/{PurePosixPath(name).name}" if cells.get("release") else name

    @property
    def encoder(self) -> str:
        """Kind of network, or PCA."""
        return "PCA" if self.fingerprint.model.get("encoder") == "pca" else "scGPT"

    def facts(self) -> dict[str, str]:
        """Names and texts, for a table or list."""
        model, cells = self.fingerprint.model, self.fingerprint.cells
        selected = [f"`{cells['obs_filter']}`"] if cells.get("obs_filter") else ["all cells"]
        if cells.get("unique"):
            selected.append("without duplicates (`is_primary_data`)")
        facts = {
            "Atlas": f"`{self.atlas}`{_version(cells)}",
            "Cells": ", ".join(selected),
            "Checkpoint": f"{self.encoder} `{self.checkpoint}`, SHA-256 of the weights `{model['weights']}`",
            "Precision": str(model.get("precision", NOT_STATED)),
            "Gene coverage": NOT_STATED
            if self.coverage is None
            else f"{self.coverage:.1%} of the counts are of genes in the vocabulary",
            "Fingerprint": f"`{self.fingerprint.digest}`",
        }
        if "highly_variable" in cells:
            facts["Genes"] = f"{cells['highly_variable']} highly variable genes"
        return facts


def _version(cells: Mapping[str, Any]) -> str:
    if cells.get("snapshot"):
        return f", as of {datetime.fromtimestamp(cells['snapshot'] / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f", {cells['bytes']:,} bytes" if "bytes" in cells else ""


def embedded_with(folder: Folder) -> str:
    """The checkpoint that `embed` was given, for commands on this machine: a folder by its whole path."""
    plan = Plan.read(folder)
    asked = str(plan.settings.get("checkpoint") or NOT_STATED) if plan else NOT_STATED
    is_name = asked in (DEMO, *PUBLISHED)  # also where a folder has that name
    return str(Path(asked).absolute()) if Path(asked).is_dir() and not is_name else asked


def checkpoint_name(weights: str, asked: str) -> str:
    """Name of a checkpoint for others.

    Args:
        weights: SHA-256 of its weights.
        asked: What `embed` was given; empty if unknown.
    """
    published = [name for name, entry in PUBLISHED.items() if weights in {k.sha256 for k in entry.files.values()}]
    if published or asked in (DEMO, *PUBLISHED):
        return published[0] if published else asked
    return public_name(asked) or NOT_STATED


def public_name(place: str) -> str:
    """A URI, or the last name of a path."""
    return place if "://" in place else PurePosixPath(place).name


def markdown_list(facts: Mapping[str, str]) -> str:
    """Names and texts as a Markdown list."""
    return "\n".join(f"* **{name}**: {text}" for name, text in facts.items())
