"""The report of `embed` and `refresh`, from the footers of the parts and the records: no vector is read for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scgpt_ray.parts.parts import GENE_BINS, Part
from scgpt_ray.pipelines.embed_request import EmbedJob
from scgpt_ray.progress import Stage
from scgpt_ray.records import Manifest, Quarantine

REPORT = "report.html"


@dataclass(frozen=True)
class Speed:
    """Cells that a run embedded, and the seconds that it took."""

    n_cells: int
    seconds: float

    def text(self) -> str:
        """A phrase for people."""
        rate = f", {self.n_cells / self.seconds:,.0f} cells/s" if self.n_cells else ""
        return f"{self.n_cells:,} cells embedded in {self.seconds:,.0f} s{rate}"


@Stage("write the report")
def write_embed_report(
    job: EmbedJob, manifest: Manifest, parts: Sequence[Part], quarantine: Quarantine, speed: Speed | None
) -> None:
    """Write report.html.

    Args:
        job: The request.
        manifest: What is there.
        parts: All parts.
        quarantine: Cells that could not be embedded.
        speed: Of the last run.
    """
    # matplotlib takes a second to import, which workers and refused requests need not wait for.
    from scgpt_ray.evaluation.report.page import page
    from scgpt_ray.evaluation.report.picture import Picture
    from scgpt_ray.evaluation.report.run_plots import genes_per_cell

    cells_B = np.sum([part.n_genes for part in parts], axis=0) if parts else np.zeros(len(GENE_BINS), np.int64)
    pictures = []
    if manifest.n_cells:
        figure = genes_per_cell(cells_B.tolist(), GENE_BINS, manifest.fingerprint.most_tokens)
        pictures = [Picture(figure, "Genes of the vocabulary with counts, per cell; each is a token.")]
    report = page(
        "embed.html",
        title=f"Embeddings of {job.settings.atlas.rstrip('/').rpartition('/')[2]}",
        manifest=manifest,
        n_cut=sum(part.n_cut for part in parts),
        max_length=manifest.fingerprint.model.get("max_length"),
        covered=manifest.coverage | {"n_cells": manifest.n_cells, "n_empty": manifest.n_empty},
        quarantine=quarantine,
        pictures=pictures,
        facts=_facts(job, manifest, speed),
    )
    job.output.write(REPORT, report.encode())


def _facts(job: EmbedJob, manifest: Manifest, speed: Speed | None) -> dict[str, object]:
    from scgpt_ray.evaluation.report.page import written

    model: dict[str, Any] = manifest.fingerprint.model
    devices = dict.fromkeys(str(actor["device"]) for actor in manifest.actors)
    last = f"; {speed.text()}" if speed else ""
    return {
        "atlas": job.source.uri,
        "cells": manifest.n_cells,
        "filter": job.settings.obs_filter or "none",
        "checkpoint": f"{job.settings.checkpoint} (sha256 {model['weights'][:12]})",
        "width of the embedding": manifest.dimension,
        **({"most tokens of a cell": model["max_length"], "seed": model["seed"]} if "max_length" in model else {}),
        "precision": model["precision"],
        "tokens": manifest.n_tokens,
        "parts": len(manifest.parts),
        "columns carried along": ", ".join(manifest.obs_columns) or "none",
        "fingerprint": manifest.fingerprint.digest,
        "devices": ", ".join(devices) or "not known",
        "last run": f"{written()}{last}",
    }
