"""Which cells of the reference a query may find: a condition on their labels, and none that share a value with it."""

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
"""A query's own values of the columns that exclude; None equals none."""


@dataclass(frozen=True)
class Allowed:
    """What some queries may find.

    Attributes:
        condition: On the labels of the reference, in the language of --obs-filter; None for none.
        columns: A cell that shares a query's own value in any of these is not found.
        groups: The distinct own values among the queries.
        group_Q: int64 [Q], each query's place in groups.
    """

    condition: str | None
    columns: tuple[str, ...]
    groups: tuple[Own, ...]
    group_Q: Int64Array

    @classmethod
    def among(cls, condition: str | None, own: pa.Table, n_queries: int) -> "Allowed | None":
        """Gather queries by their own values.

        Args:
            condition: As the attribute.
            own: A row for each query and a column for each one that excludes; maybe none.
            n_queries: Rows, where there is no column.

        Returns:
            None where everything may be found.
        """
        if condition is None and not own.column_names:
            return None
        if not own.column_names:
            return cls(condition, (), ((),), np.zeros(n_queries, np.int64))
        texts = [column.cast(pa.string()).to_pylist() for column in own.columns]
        place: dict[Own, int] = {}
        group_Q = np.array([place.setdefault(values, len(place)) for values in zip(*texts, strict=True)], np.int64)
        return cls(condition, tuple(own.column_names), tuple(place), group_Q)

    def of(self, rows_Q: Int64Array) -> "Allowed":
        """The same for some of the queries."""
        return Allowed(self.condition, self.columns, self.groups, self.group_Q[rows_Q])

    def needs(self, schema: pa.Schema) -> list[str]:
        """The label columns that are looked at."""
        condition = condition_of(self.condition, schema)
        return sorted({*self.columns, *(condition.columns() if condition else ())})

    def masks(self, labels: pa.Table) -> Iterator[tuple[Int64Array, Mask]]:
        """Rows of queries int64 [some], and the cells bool [n] that they may find; each query once.

        Args:
            labels: The columns of `needs`, a row for each cell of a shard.
        """
        condition = condition_of(self.condition, labels.schema)
        met_N = np.ones(labels.num_rows, np.bool_) if condition is None else condition.mask(labels)
        texts = {name: labels[name].cast(pa.string()).combine_chunks().dictionary_encode() for name in self.columns}
        for group in np.unique(self.group_Q):
            mask_N = met_N.copy()
            for name, value in zip(self.columns, self.groups[group], strict=True):
                place = texts[name].dictionary.index(value)  # -1, which no cell has, where it is null or not there
                is_other = pc.not_equal(texts[name].indices, place).fill_null(True)
                mask_N &= is_other.to_numpy(zero_copy_only=False)
            yield np.flatnonzero(self.group_Q == group), mask_N


def condition_of(text: str | None, schema: pa.Schema) -> Condition | None:
    """Read a condition on labels.

    Raises:
        ConfigError: As `cells.filter.parse`.
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
    allowed: Allowed | None, n_queries: int, labels: pa.Table | None
) -> Sequence[tuple[Int64Array, Mask | None]]:
    """The groups of queries to search for one by one: all at once where everything may be found."""
    if allowed is None or labels is None:
        return [(np.arange(n_queries), None)]
    return list(allowed.masks(labels))
