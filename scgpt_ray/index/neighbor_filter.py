"""Filters on neighbours: a condition on their labels (--neighbor-filter) and excluded groups (--exclude-same)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.atlas.obs_filter import Condition, parse
from scgpt_ray.errors import AtlasError, ConfigError
from scgpt_ray.index.search import Mask
from scgpt_ray.schema import Int64Array

Own: TypeAlias = tuple[str | None, ...]
"""The values of one query in the exclusion columns; a None excludes no cell."""


@dataclass(frozen=True)
class NeighborFilter:
    """The filters of a set of queries.

    Attributes:
        condition: On the labels of the reference, in the syntax of --obs-filter; None for no condition.
        columns: Exclusion columns: a query never finds a cell that has the query's value in one of them.
        groups: The distinct values of these columns among the queries.
        group_Q: int64 [Q], position of each query in `groups`.
    """

    condition: str | None
    columns: tuple[str, ...]
    groups: tuple[Own, ...]
    group_Q: Int64Array

    @classmethod
    def among(cls, condition: str | None, own: pa.Table, n_queries: int) -> "NeighborFilter | None":
        """Group queries by their values in the exclusion columns.

        Args:
            condition: As the attribute.
            own: One row per query and one column per exclusion column; may have no columns.
            n_queries: Number of queries.

        Returns:
            The filters; None if there is no condition and no exclusion column.
        """
        if condition is None and not own.column_names:
            return None
        if not own.column_names:
            return cls(condition, (), ((),), np.zeros(n_queries, np.int64))
        texts = [column.cast(pa.string()).to_pylist() for column in own.columns]
        place: dict[Own, int] = {}
        group_Q = np.array([place.setdefault(values, len(place)) for values in zip(*texts, strict=True)], np.int64)
        return cls(condition, tuple(own.column_names), tuple(place), group_Q)

    def of(self, rows_Q: Int64Array) -> "NeighborFilter":
        """The filters of some of the queries."""
        return NeighborFilter(self.condition, self.columns, self.groups, self.group_Q[rows_Q])

    def needs(self, schema: pa.Schema) -> list[str]:
        """Label columns that the filters read."""
        condition = condition_of(self.condition, schema)
        return sorted({*self.columns, *(condition.columns() if condition else ())})

    def masks(self, labels: pa.Table) -> Iterator[tuple[Int64Array, Mask]]:
        """Yield pairs of query rows, int64 [some], and the cells that they may find, bool [n]; each query once.

        Args:
            labels: The columns of `needs`, one row per cell of a shard.
        """
        condition = condition_of(self.condition, labels.schema)
        met_N = np.ones(labels.num_rows, np.bool_) if condition is None else condition.mask(labels)
        texts = {name: _encoded(labels[name]) for name in self.columns}
        for group in np.unique(self.group_Q):
            mask_N = met_N.copy()
            for name, value in zip(self.columns, self.groups[group], strict=True):
                place = texts[name].dictionary.index(value)  # -1, which no cell has, if null or absent
                codes = texts[name].indices
                is_other = pc.not_equal(codes, pa.scalar(place.as_py(), codes.type)).fill_null(True)
                mask_N &= is_other.to_numpy(zero_copy_only=False)
            yield np.flatnonzero(self.group_Q == group), mask_N


def _encoded(values: pa.ChunkedArray) -> pa.DictionaryArray:
    """Values as places in a dictionary of texts; a column of `label_columns.read_labels` is not copied."""
    if pa.types.is_dictionary(values.type) and pa.types.is_string(values.type.value_type):
        return values.unify_dictionaries().combine_chunks()
    return values.cast(pa.string()).combine_chunks().dictionary_encode()


def condition_of(text: str | None, schema: pa.Schema) -> Condition | None:
    """Parse a condition on labels.

    Raises:
        ConfigError: If it is no valid filter, or names a column that the index does not keep.
    """
    if text is None:
        return None
    try:
        return parse(text, schema, "the index")
    except AtlasError as error:
        raise ConfigError(
            error.found.replace("obs filter", "--neighbor-filter").replace("obs has", "it keeps"),
            expected=error.expected.replace("obs columns", "label columns"),
            remedy="change --neighbor-filter, or build the index with these --label-columns",
        ) from None


def masked(
    allowed: NeighborFilter | None, n_queries: int, labels: pa.Table | None
) -> Sequence[tuple[Int64Array, Mask | None]]:
    """Groups of queries to search together, with their masks; one group without a mask if there is no filter."""
    if allowed is None or labels is None:
        return [(np.arange(n_queries), None)]
    return list(allowed.masks(labels))
