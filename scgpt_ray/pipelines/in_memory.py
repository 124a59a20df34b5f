"""Cells in memory -> embeddings in memory: the steps of `embed` in this process, without files."""

import sys
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
from tqdm.auto import tqdm

from scgpt_ray.atlas.genes import Coverage
from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.source import Cells
from scgpt_ray.config import EmbedSettings
from scgpt_ray.network.cell_encoder import read_encoder
from scgpt_ray.pipelines.embed_request import harmonize_genes, inspect, precision_of, suited
from scgpt_ray.pipelines.executor import cells_per_partition
from scgpt_ray.schema import EMBEDDING, Float32Matrix, dense_vectors
from scgpt_ray.tokenizer.rules import TokenRules


@dataclass(frozen=True, eq=False)
class EmbeddedCells:
    """Embeddings of cells in memory.

    Attributes:
        table: EMBEDDINGS, one row per cell, in their order.
        coverage: Share of the counts that the vocabulary covers.
        model: `Fingerprint.model`.
        has_token: bool [n_var], genes of the vocabulary.
    """

    table: pa.Table
    coverage: Coverage
    model: dict[str, Any]
    has_token: Any

    def vectors(self) -> Float32Matrix:
        """float32 [n_cells, d]; NaN for cells without a gene of the vocabulary."""
        return dense_vectors(self.table[EMBEDDING])


def progress_bar(n_cells: int) -> "tqdm[NoReturn]":
    """A bar on a terminal and in a notebook; nothing elsewhere."""
    elsewhere = None  # tqdm finds out whether stderr is a terminal
    return tqdm(total=n_cells, desc="embed", unit=" cells", disable=False if "ipykernel" in sys.modules else elsewhere)


def embed_cells(cells: Cells, settings: EmbedSettings, device: str, preferred: str | None = None) -> EmbeddedCells:
    """Embed all cells, partition by partition as `embed` does, with the same check of the genes before.

    Args:
        cells: The cells.
        settings: Request; the atlas, the output folder and obs columns are not used.
        device: cpu, cuda or cuda:N.
        preferred: The precision for `auto`, if the device supports it.

    Raises:
        AtlasError: If the values are not counts.
        CheckpointError: If the checkpoint cannot be used.
        GeneCoverageError: If too few of the counts belong to genes of the vocabulary.
    """
    encoder = read_encoder(settings.checkpoint)
    settings = suited(settings, encoder)
    genes = harmonize_genes(cells, encoder.vocabulary, settings)
    joinids, coverage = inspect(settings, cells, genes)
    precision: str = settings.precision
    if precision == "auto":
        precision = precision_of(settings, preferred, lambda: int(device != "cpu"))
    rules = TokenRules.of(settings.model_dump())
    tokenize, tables = encoder.tokenizer(rules), []
    embedder = encoder.embedder(device=device, precision=precision, pooling=settings.pooling)
    with progress_bar(len(joinids)) as progress:
        for partition in cut(joinids, settings.cells_per_partition or cells_per_partition(device)):
            blocks = cells.read(partition, genes.lookup())
            tokens = pa.concat_tables(tokenize(block, encoder.vocabulary) for block in blocks)
            tables.append(embedder(tokens))
            progress.update(len(tokens))
    model = encoder.identity(rules, precision, settings.pooling)
    return EmbeddedCells(pa.concat_tables(tables), coverage, model, genes.token >= 0)
