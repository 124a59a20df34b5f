"""The cells that a gate compares: all of them without vectors, and a sample with them.

Shapes: N cells of a set of embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.errors import ConfigError
from scgpt_ray.evaluation.drift.checks import Tally
from scgpt_ray.evaluation.drift.measures import Cells
from scgpt_ray.evaluation.sample import strata_of, stratified_sample
from scgpt_ray.parts.changes import ALL
from scgpt_ray.parts.parts import PARTS, iterate_parts, read_rows
from scgpt_ray.records import Manifest
from scgpt_ray.schema import (
    CONTENT,
    DATASET_ID,
    EMBEDDING,
    JOINID,
    N_GENES,
    Float32Matrix,
    Int64Array,
    known_texts,
    matrix,
)
from scgpt_ray.storage import Folder

DEFAULT_LABEL = "cell_type"
N_SAMPLE = 10_000
"""Most cells of a sample; its vectors, of width 512, have 20 MB."""
_MOST_PARTS = 256  # that a sample is drawn from, which bounds what is read of a large atlas
_UNKNOWN = ""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Listed:
    """All cells of finished embeddings, 20 bytes each.

    Attributes:
        folder: Where they are.
        manifest: Their manifest.
        table: content_digest, n_genes, and dataset and label as dictionaries of text.
    """

    folder: Folder
    manifest: Manifest
    table: pa.Table

    @classmethod
    def of(cls, folder: Folder, manifest: Manifest, label_column: str | None, *, by_dataset: bool) -> "Listed":
        """Read the columns of all parts, one after the other.

        Args:
            folder: Where the embeddings are.
            manifest: Their manifest.
            label_column: Column of known labels; None without.
            by_dataset: Whether they say of which data set a cell is, in `dataset_id`.
        """
        names = dict.fromkeys([CONTENT, N_GENES, *([DATASET_ID] if by_dataset else []), *filter(None, [label_column])])
        tables = []
        for part in iterate_parts(folder.folder(PARTS), list(manifest.parts), list(names)):
            dataset = part[DATASET_ID] if by_dataset else pa.array([ALL] * len(part))
            label = part[label_column] if label_column else pa.array([_UNKNOWN] * len(part))
            columns = {"dataset": _text(dataset), "label": _text(label)}
            tables.append(pa.table({CONTENT: part[CONTENT], N_GENES: part[N_GENES], **columns}))
        return cls(folder, manifest, pa.concat_tables(tables).unify_dictionaries().combine_chunks())

    @cached_property
    def content_N(self) -> npt.NDArray[np.uint64]:
        """Digest of each cell's content; 0 without tokens."""
        return np.asarray(self.table[CONTENT].to_numpy())

    @cached_property
    def genes_N(self) -> Int64Array:
        """Expressed genes of the vocabulary."""
        return np.asarray(self.table[N_GENES].to_numpy())

    def tally(self, among_N: Mask, max_length: float) -> Tally:
        """Count some cells.

        Args:
            among_N: The cells.
            max_length: Most tokens of a cell, of which the first is <cls>.
        """
        genes = self.genes_N[among_N]
        return Tally(len(genes), int((genes == 0).sum()), int((genes >= max_length).sum()))

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets, sorted."""
        return tuple(sorted(self.table["dataset"].unique().to_pylist()))

    def of_dataset(self, name: str) -> Mask:
        """The cells of a data set."""
        codes, names = self._coded("dataset")
        return np.asarray(codes == names.index(name)) if name in names else np.zeros(len(codes), bool)

    def lacks(self, other: "Listed") -> Mask:
        """The cells with an embedding whose content is not among those of other embeddings."""
        return ~np.isin(self.content_N, other.content_N) & self.has_vector_N

    @property
    def has_vector_N(self) -> Mask:
        """The cells with an embedding."""
        return np.asarray(self.content_N != 0)

    def sample(self, among_N: Mask, size: int = N_SAMPLE) -> Int64Array:
        """Rows of a sample, sorted, stratified by data set and label; from at most 256 parts, drawn at random."""
        rows = np.flatnonzero(among_N)
        ends = np.cumsum(np.fromiter(self.manifest.parts.values(), np.int64))
        part_of = np.searchsorted(ends, rows, side="right")
        parts = np.random.default_rng(0).permutation(np.unique(part_of))[:_MOST_PARTS]
        rows = rows[np.isin(part_of, parts)]
        if not len(rows):
            return rows
        strata = strata_of(self._coded("dataset")[0][rows], self._coded("label")[0][rows])
        return rows[stratified_sample(strata, size, seed=0)]

    def cells(self, rows: Int64Array, *, first: int = 0) -> Cells:
        """Some cells with an embedding, with their vectors; the first of all cells has the number `first`."""
        dataset, label = (
            np.array(names, object)[codes[rows]] for codes, names in map(self._coded, ("dataset", "label"))
        )
        return Cells(first + rows, self.vectors(rows), self.genes_N[rows].astype(np.int64), label, dataset)

    def vectors(self, rows: Int64Array) -> Float32Matrix:
        """Vectors of some cells with an embedding, float32 [rows, d]."""
        if not len(rows):
            return np.empty((0, self.manifest.dimension), np.float32)
        ascending, place = np.unique(rows, return_inverse=True)
        vectors = read_rows(self.folder, self.manifest, ascending, [EMBEDDING])[EMBEDDING]
        return np.asarray(matrix(vectors), np.float32)[place]

    def joinids(self, rows: Int64Array) -> Int64Array:
        """soma_joinid of some cells."""
        return np.asarray(read_rows(self.folder, self.manifest, rows, [JOINID])[JOINID].to_numpy())

    def _coded(self, column: str) -> tuple[npt.NDArray[np.int32], list[str]]:
        array = self.table[column].chunk(0)
        return np.asarray(array.indices.to_numpy()), array.dictionary.to_pylist()


def _text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Texts as a dictionary; labels that say nothing become the empty text."""
    return known_texts(column).fill_null(_UNKNOWN).dictionary_encode()


def label_column_of(asked: str | None, earlier: Sequence[str], later: Sequence[str]) -> str | None:
    """The column of known labels; None if none is named and not both carry `cell_type`.

    Args:
        asked: The column that was named.
        earlier: obs columns of the earlier embeddings.
        later: obs columns of the later ones.

    Raises:
        ConfigError: If the named column is not carried by both.
    """
    carried = [name for name in earlier if name in later]
    if asked is not None and asked not in carried:
        raise ConfigError(
            f"--label-column {asked}: not in both sets of embeddings",
            expected=f"one of {', '.join(carried) or 'none'}",
            remedy="embed with --obs-columns, or name another column",
        )
    return asked or (DEFAULT_LABEL if DEFAULT_LABEL in carried else None)
