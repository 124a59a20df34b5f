"""What makes vectors of cells: a network, or whatever else keeps to these protocols."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from scgpt_ray.network.checkpoint_files import COMPONENTS_FILE, CheckpointFiles, CheckpointName
from scgpt_ray.network.components import read_components
from scgpt_ray.tokenizer.rules import TokenRules
from scgpt_ray.tokenizer.vocabulary import Vocabulary

Tokenize: TypeAlias = Callable[[pa.Table, Vocabulary], pa.Table]
"""CELLS -> what the encoder takes: one row per cell with `n_genes` and `content_digest`, and ragged columns. It
pickles."""


class CellEmbedder(Protocol):
    """An encoder on a device, ready to compute; several threads may call it."""

    def __call__(self, tokens: pa.Table, /) -> pa.Table:
        """EMBEDDINGS of what `Tokenize` gives, in the same order: unit vectors, null for a cell without genes.

        Raises:
            WorkerError: If a cell has no vector although it has genes.
        """

    def describe(self) -> dict[str, str | int]:
        """`device`, `precision` and what else a report should say."""


class CellEncoder(Protocol):
    """An encoder of cells as it was read from its folder, validated."""

    @property
    def files(self) -> CheckpointFiles | None:
        """Its files, with the digests of what was read, by which workers find them."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Names of the genes that it knows."""

    @property
    def weights_sha256(self) -> str:
        """Digest of its numbers."""

    @property
    def width(self) -> int:
        """Length of a vector."""

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Labels that it was trained to tell apart, if any."""

    @property
    def training_sets(self) -> tuple[str, ...]:
        """Names of the data sets with these labels, if any."""

    def identity(self, rules: TokenRules, precision: str, pooling: str) -> dict[str, Any]:
        """All that determines the vector of a cell, for `Fingerprint.model`; has `weights` and `precision`."""

    def tokenizer(self, rules: TokenRules) -> Tokenize:
        """What turns CELLS into its input."""

    def embedder(self, **options: Any) -> CellEmbedder:
        """Make it ready to compute.

        Args:
            options: Those of `network.embedder.Embedder`, as far as they mean something to it.
        """


def read_encoder(name: CheckpointName) -> CellEncoder:
    """Read the encoder of a folder, from a path or URI or by its name.

    Raises:
        CheckpointError: If a file is missing or invalid, or the files do not belong together.
    """
    files = CheckpointFiles.at(name)
    if files.weights() == COMPONENTS_FILE:
        return read_components(files)
    from scgpt_ray.network.checkpoint import read_checkpoint  # on need: components do without torch

    return read_checkpoint(files)
