"""What the driver of `map` holds of a query and its predictions: counts of all cells, and the rows of a sample.

One part is in memory at a time. What is held grows with the labels and samples of the query, not with its cells.

Shapes: S cells of the sample.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from scgpt_ray.mapping.placement import is_far
from scgpt_ray.mapping.prediction import UNKNOWN
from scgpt_ray.pipelines.map_defaults import sample_column
from scgpt_ray.pipelines.prediction_table import confidences, overview_columns
from scgpt_ray.pipelines.query_parts import QueryParts, joined
from scgpt_ray.records import NeighborDistances
from scgpt_ray.schema import N_GENES, SCORE, Int64Array, ragged

SAMPLE_CELLS = 200_000
"""Cells of the sample; a smaller query is taken whole. An accuracy of 0.9 then has a standard error of 0.0007."""

DISTANCE = "distance"
"""Column of the sample: cosine distance to the farthest of the neighbours; null without neighbours."""

_KEYS = ("label", "sample")
_FIGURES = ("cells", "found", "far", "uncertain", "confidence")
_CERTAIN = 0.5  # confidence
_SEED = 0


@dataclass(frozen=True, eq=False)
class Overview:
    """Counts of all query cells, and a sample of them.

    Attributes:
        labels: Label column -> label -> cells, most first.
        unknown: Label column -> reason for `Unknown` -> cells, likewise.
        n_genes: Genes of the vocabulary with counts -> cells.
        groups: Label column -> cells by `label` and, if there is such a column, `sample` of the query: sums of `cells`;
            `found`, those with neighbours; `far`, those that are farther from the reference than its own; `uncertain`,
            those with a confidence below 0.5; and their `confidence`.
        rows: int64 [S], the cells of the sample, ascending.
        sample: S rows: the columns that `overview_columns` names, texts as dictionaries; `N_GENES`; `DISTANCE`.
    """

    labels: dict[str, dict[str, int]]
    unknown: dict[str, dict[str, int]]
    n_genes: Counter[int]
    groups: dict[str, pd.DataFrame]
    rows: Int64Array
    sample: pa.Table

    @classmethod
    def of(
        cls,
        parts: QueryParts,
        columns: Sequence[str],
        calibrated: Collection[str],
        distances: NeighborDistances,
        k: int,
    ) -> "Overview":
        """Read all predictions once.

        Args:
            parts: The query and its committed predictions.
            columns: Label columns.
            calibrated: Those with a probability.
            distances: Of the reference.
            k: Neighbours that voted.
        """
        names, by_sample = overview_columns(columns, calibrated), sample_column(parts.manifest.obs_columns)
        counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        n_genes: Counter[int] = Counter()
        groups: dict[str, list[pa.Table]] = {column: [] for column in columns}
        tables: list[pa.Table] = []
        rows: list[Int64Array] = []
        start = 0
        for part, drawn in zip(parts.names, sample_rows(list(parts.manifest.parts.values())), strict=True):
            own = parts.embeddings(part, [N_GENES, *([by_sample] if by_sample else [])])
            cells = _cells(parts.predicted(part, [*names, SCORE]), names).append_column(N_GENES, own[N_GENES])
            samples = own[by_sample].cast(pa.string()) if by_sample else pa.nulls(len(own), pa.string())
            for column in columns:
                groups[column] = [_summed([*groups[column], _figures(cells, column, samples, distances, k)])]
                counts[column].update(_counted(cells[column]))
                counts[f"{column}_unknown"].update(_counted(cells[f"{column}_unknown"].drop_null()))
            n_genes.update(_counted(own[N_GENES]))
            tables = [joined([*tables, cells.take(pa.array(drawn))]).combine_chunks()]
            rows.append(start + drawn)
            start += len(own)
        ranked = {name: dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))
                  for name, found in counts.items()}  # fmt: skip
        return cls(
            {column: ranked[column] for column in columns},
            {column: ranked[f"{column}_unknown"] for column in columns},
            n_genes,
            {column: summed.to_pandas() for column, [summed] in groups.items()},
            np.concatenate(rows),
            tables[0],
        )

    @property
    def n_cells(self) -> int:
        """Number of query cells."""
        return self.n_genes.total()

    @property
    def is_sample(self) -> bool:
        """Whether the query has more cells than the sample."""
        return len(self.rows) < self.n_cells

    def labelled(self, column: str) -> pd.DataFrame:
        """Figures of each label of a column but `Unknown`."""
        return self.by("label", column).drop(index=UNKNOWN, errors="ignore")

    def far_by_sample(self) -> dict[str | None, tuple[int, int]]:
        """Sample -> its cells with neighbours, and the far ones of them; those without a sample are under None."""
        first = next(iter(self.groups.values()))
        cells = first.groupby("sample", dropna=False)[["found", "far"]].sum()
        return {None if pd.isna(name) else name: (int(found), int(far)) for name, found, far in cells.itertuples()}

    def by(self, key: str, column: str) -> pd.DataFrame:
        """`groups` of a column by label or by sample alone; those without a sample are left out."""
        return self.groups[column].groupby(key)[list(_FIGURES)].sum()


def sample_rows(sizes: Sequence[int]) -> list[Int64Array]:
    """Rows of each part that are in the sample, ascending; each cell of the query has the same chance.

    Args:
        sizes: Cells of each part.
    """
    random = np.random.default_rng(_SEED)
    drawn = sizes if sum(sizes) <= SAMPLE_CELLS else random.multivariate_hypergeometric(sizes, SAMPLE_CELLS)
    return [np.sort(random.choice(n, some, replace=False)) for n, some in zip(sizes, drawn, strict=True)]


def _cells(predicted: pa.Table, names: Sequence[str]) -> pa.Table:
    columns = {name: _encoded(predicted[name]) for name in names}
    return pa.table(columns | {DISTANCE: _farthest(predicted[SCORE])})


def _encoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.dictionary_encode() if pa.types.is_string(values.type) else values


def _farthest(scores: pa.ChunkedArray) -> pa.Array:
    """Cosine distance to the last neighbour of each cell, float32; null for a cell without neighbours."""
    offsets, score_V = ragged(scores)
    found = np.diff(offsets) > 0
    distance = np.zeros(len(found), np.float32)
    distance[found] = 1 - score_V[offsets[1:][found] - 1].astype(np.float64)
    return pa.array(distance, mask=~found)


def _counted(values: pa.ChunkedArray) -> dict[Any, int]:
    return {entry["values"]: entry["counts"] for entry in values.value_counts().to_pylist()}


def _figures(
    cells: pa.Table, column: str, samples: pa.Array | pa.ChunkedArray, distances: NeighborDistances, k: int
) -> pa.Table:
    """The keys and figures of single cells."""
    confidence = list(confidences(cells, column).values())[-1]
    distance = cells[DISTANCE].to_numpy().astype(np.float64)
    far = is_far(distances, k, distance)
    counted = (np.ones(len(cells)), ~np.isnan(distance), np.zeros(len(cells)) if far is None else far,
               confidence < _CERTAIN)  # fmt: skip
    arrays = [cells[column].cast(pa.string()), samples, *(values.astype(np.int64) for values in counted)]
    return pa.table([*arrays, confidence.astype(np.float64)], names=[*_KEYS, *_FIGURES])


def _summed(tables: Sequence[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(tables).group_by(list(_KEYS), use_threads=False)
    sums = grouped.aggregate([(name, "sum") for name in _FIGURES])
    return pa.table({key: sums[key] for key in _KEYS} | {name: sums[f"{name}_sum"] for name in _FIGURES})
