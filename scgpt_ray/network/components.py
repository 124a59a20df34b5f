"""Principal components as an encoder: log-normalised counts of variable genes, projected.

    x_g     = log(1 + 10,000 * count_g / sum of the cell's counts), for the variable genes g
    vector  = components (x - mean), scaled to unit length

Shapes: N cells, B cells at once, V tokens of the vocabulary, H variable genes, C components.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scgpt_ray.errors import CheckpointError, WorkerError
from scgpt_ray.network.checkpoint_files import ARGS_FILE, COMPONENTS_FILE, VOCABULARY_FILE, CheckpointFiles
from scgpt_ray.schema import COUNT, GENE, JOINID, Float32Matrix, embedded, ragged
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import TokenRules, canonical_counts
from scgpt_ray.tokenizer.vocabulary import Vocabulary

COUNTS_PER_CELL = 1e4
"""Sum to which the counts of a cell are scaled."""

VERSION = 1
"""Incremented whenever the same counts and components give another vector."""

_CELLS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Components:
    """Fitted components; a `CellEncoder`, and its own `CellEmbedder`.

    Args:
        vocabulary: Names of all genes of the cells that it was fitted to, whose counts make up the sum of a cell.
        token_H: Variable genes, int32, ascending.
        mean_H: Mean of their values, float64.
        components_CH: Orthonormal rows, float64.
        weights_sha256: Digest of the file of these three.
        files: Its files, with their digests.
    """

    vocabulary: Vocabulary
    token_H: npt.NDArray[np.int32]
    mean_H: npt.NDArray[np.float64]
    components_CH: npt.NDArray[np.float64]
    weights_sha256: str
    files: CheckpointFiles
    cell_types: tuple[str, ...] = ()
    training_sets: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of components."""
        return len(self.components_CH)

    def identity(self, _rules: TokenRules, precision: str, _pooling: str) -> dict[str, Any]:
        """All that determines the vector of a cell."""
        return {
            "encoder": "pca",
            "weights": self.weights_sha256,
            "vocabulary": self.vocabulary.sha256,
            "count_rules": VERSION,
            "precision": precision,
        }

    def tokenizer(self, _rules: TokenRules) -> Any:
        """Counts are taken as they are."""
        return canonical_counts

    def embedder(self, **_options: Any) -> "Components":
        """Itself: it needs no device."""
        return self

    def describe(self) -> dict[str, str | int]:
        """Device and precision; vectors are computed in float64 and rounded."""
        return {"device": "cpu", "precision": "float32", "components": self.width}

    def __call__(self, counts: pa.Table, /) -> pa.Table:
        """EMBEDDINGS of COUNTS.

        Raises:
            WorkerError: If the projection of a cell is zero, which has no direction.
        """
        offsets, gene = ragged(counts[GENE])
        _, count = ragged(counts[COUNT])
        absent_N = np.diff(offsets) == 0
        vectors_NC = np.empty((len(counts), self.width), np.float32)
        for start in range(0, len(counts), _CELLS_AT_ONCE):
            bounds = offsets[start : start + _CELLS_AT_ONCE + 1]
            cells = slice(bounds[0], bounds[-1])
            vectors_NC[start : start + _CELLS_AT_ONCE] = self._project(np.diff(bounds), gene[cells], count[cells])
        undirected_N = ~absent_N & ~vectors_NC.any(axis=1)
        if undirected_N.any():
            raise WorkerError(f"the projection of cell {counts[JOINID].to_numpy()[undirected_N][0]} is zero")
        return embedded(counts, vectors_NC, absent_N)

    def _project(self, n_genes_B: npt.NDArray[Any], gene: npt.NDArray[Any], count: npt.NDArray[Any]) -> Float32Matrix:
        row = np.repeat(np.arange(len(n_genes_B)), n_genes_B)
        sum_B = np.bincount(row, weights=count, minlength=len(n_genes_B))
        place = self._place_V[gene]
        row, place, count = (each[place >= 0] for each in (row, place, count))
        values_BH = np.zeros((len(n_genes_B), len(self.token_H)))
        values_BH[row, place] = np.log1p(count * (COUNTS_PER_CELL / sum_B[row]))
        projected_BC = (values_BH - self.mean_H) @ self.components_CH.T
        norm_B1 = np.linalg.norm(projected_BC, axis=1, keepdims=True)
        return np.asarray(projected_BC / np.maximum(norm_B1, np.finfo(np.float64).tiny), np.float32)

    @cached_property
    def _place_V(self) -> npt.NDArray[np.int32]:
        """Place of each token among the variable genes; -1 for others."""
        place_V = np.full(self.vocabulary.size, -1, np.int32)
        place_V[self.token_H] = np.arange(len(self.token_H))
        return place_V


def write_components(
    place: Folder,
    vocabulary: Vocabulary,
    token_H: npt.NDArray[np.int32],
    mean_H: npt.NDArray[np.float64],
    components_CH: npt.NDArray[np.float64],
    about: dict[str, Any],
) -> None:
    """Write fitted components as a folder that `read_components` reads.

    Args:
        place: The folder.
        vocabulary: Names of the genes.
        token_H: Variable genes, ascending.
        mean_H: Mean of their values.
        components_CH: Orthonormal rows.
        about: What else people should know, for args.json; it is not read again.
    """
    numbers = {"token": token_H, "mean": mean_H, "components": np.ascontiguousarray(components_CH)}
    place.write(ARGS_FILE, json.dumps({"encoder": "pca", **about}, indent=2).encode())
    place.write(VOCABULARY_FILE, json.dumps(dict(vocabulary.tokens), indent=2).encode())
    place.write(COMPONENTS_FILE, save(numbers))


def read_components(files: CheckpointFiles) -> Components:
    """Read fitted components.

    Raises:
        CheckpointError: If a file is missing or invalid, or they do not belong together.
    """
    contents = {name: files.read(name) for name in (ARGS_FILE, VOCABULARY_FILE, COMPONENTS_FILE)}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    vocabulary = Vocabulary.from_json(contents[VOCABULARY_FILE], files.folder.where(VOCABULARY_FILE))
    try:
        found = load(contents[COMPONENTS_FILE])
        token_H, mean_H, components_CH = (found[name] for name in ("token", "mean", "components"))
    except (SafetensorError, KeyError) as error:
        raise _unusable(files, str(error)) from error
    n_genes = len(token_H)
    if (mean_H.shape, components_CH.shape[1:]) != ((n_genes,), (n_genes,)):
        raise _unusable(files, f"{n_genes} genes, but arrays of {mean_H.shape} and {components_CH.shape}")
    if not (n_genes and (np.diff(token_H) > 0).all() and token_H[0] >= 0 and token_H[-1] < vocabulary.size):
        raise _unusable(files, f"genes that are not among the {vocabulary.size} of {VOCABULARY_FILE}")
    if not (np.isfinite(mean_H).all() and np.isfinite(components_CH).all()):
        raise _unusable(files, "numbers that are not finite")
    return Components(
        vocabulary,
        token_H.astype(np.int32),
        mean_H.astype(np.float64),
        components_CH.astype(np.float64),
        sums[COMPONENTS_FILE],
        CheckpointFiles(files.uri, tuple(sums.items()), files.store),
    )


def _unusable(files: CheckpointFiles, found: str) -> CheckpointError:
    return CheckpointError(
        f"{files.folder.where(COMPONENTS_FILE)}: {found}",
        expected="the components that embed has fitted, with their vocab.json",
        remedy="copy the folder again",
    )
