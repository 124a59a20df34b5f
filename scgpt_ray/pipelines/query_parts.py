"""Query cells and their predictions, in parts of the same rows: all of them are never in memory together.

A part of the predictions belongs to the part of the embeddings of the same name. Its footer has the digest of the
request and of the embeddings, so that a later run of the same request keeps it.
"""

import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.identity import digest_of
from scgpt_ray.parts.footer import read_all, read_stamp, stamped
from scgpt_ray.parts.parts import PARTS, part_name, part_number, read_checked, read_part
from scgpt_ray.records import Manifest
from scgpt_ray.schema import Int64Array
from scgpt_ray.storage import Folder

PREDICTIONS = "predictions.parquet"
"""Folder of the predictions; pandas, pyarrow and duckdb read it as one table."""

_FOOTER = b"scgpt_ray.predictions"
_REMEDY = "remove the file, and run map again"


@dataclass(frozen=True)
class ReadQuery:
    """Partition -> EMBEDDINGS of its cells.

    Attributes:
        parts: Folder of the parts.
    """

    parts: Folder

    def __call__(self, partition: Partition) -> pa.Table:
        """Read the part."""
        return read_part(self.parts, part_name(partition.number))


@dataclass(frozen=True)
class CommitPredictions:
    """Predictions -> a committed part.

    Attributes:
        predictions: Folder of the predictions.
    """

    predictions: Folder

    def __call__(self, predictions: pa.Table, partition: Partition, figures: dict[str, Any]) -> dict[str, Any]:
        """Write a part; the receipt is the figures, of which `unknown_terms` is written, and `cells`."""
        sink = io.BytesIO()
        values = {"made": partition.digest, "unknown_terms": figures["unknown_terms"]}
        # In one chunk: pages would end where chunks do, which differ with the way that a table has come.
        whole = stamped(predictions.combine_chunks(), _FOOTER, values)
        pq.write_table(whole, sink, compression="zstd", write_page_checksum=True)
        self.predictions.write(part_name(partition.number), sink.getvalue())
        return {**figures, "cells": partition.n_cells}


@dataclass(frozen=True)
class QueryParts:
    """Embeddings of the query and its predictions.

    Attributes:
        embedded: Output folder of `embed` with the query.
        manifest: Its manifest.
        predictions: Folder of the predictions.
        request: What else decides the predictions, as JSON values.
    """

    embedded: Folder
    manifest: Manifest
    predictions: Folder
    request: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the parts, in order of the cells."""
        return list(self.manifest.parts)

    @cached_property
    def _stamps(self) -> dict[str, str]:
        request = digest_of(self.request)
        return {name: digest_of([request, data]) for name, data in zip(self.names, self.manifest.digests, strict=True)}

    def left(self) -> tuple[tuple[Partition, ...], Counter[str]]:
        """What has no predictions yet, and the unknown terms of what has; predictions of another request are removed.

        The digest of a partition is that of the request and its embeddings; `CommitPredictions` writes it.
        """
        there = self.predictions.names()
        kept = {name: terms for name, terms in read_all(self._kept, there) if terms is not None}
        for name in there:
            if name not in kept:
                self.predictions.remove(name)
        left = [(name, n_cells) for name, n_cells in self.manifest.parts.items() if name not in kept]
        todo = (Partition(part_number(name), 0, 0, n_cells, self._stamps[name]) for name, n_cells in left)
        return tuple(todo), sum(map(Counter, kept.values()), Counter())

    def _kept(self, name: str) -> tuple[str, dict[str, int] | None]:
        """The name of a file, and the unknown terms of its footer if it has the predictions of a part."""
        found = read_stamp(self.predictions, name, _FOOTER)
        is_mine = found is not None and found[0]["made"] == self._stamps.get(name)
        return name, found[0]["unknown_terms"] if found and is_mine else None

    def embeddings(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """EMBEDDINGS of a part."""
        return read_part(self.embedded.folder(PARTS), name, columns)

    def predicted(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Predictions of a part."""
        return read_checked(self.predictions, name, columns, _REMEDY)[0].replace_schema_metadata()

    def whole(self) -> pa.Table:
        """All predictions, in memory."""
        return joined([self.predicted(name) for name in self.names])

    def rows(self, rows: Int64Array, columns: list[str] | None = None) -> pa.Table:
        """EMBEDDINGS of some cells, in the order of `rows`."""
        return self._rows(rows, partial(self.embeddings, columns=columns))

    def predicted_rows(self, rows: Int64Array) -> pa.Table:
        """Predictions of some cells, in the order of `rows`."""
        return self._rows(rows, self.predicted)

    def _rows(self, rows: Int64Array, read: Callable[[str], pa.Table]) -> pa.Table:
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum(list(self.manifest.parts.values()))
        cut = np.split(rows[order], np.searchsorted(rows[order], ends)[:-1])
        starts = np.concatenate([[0], ends[:-1]])
        # With no row at all, the first part tells the columns.
        tables = [
            read(name).take(pa.array(mine - start))
            for number, (name, mine, start) in enumerate(zip(self.names, cut, starts, strict=True))
            if len(mine) or number == 0
        ]
        return joined(tables).take(pa.array(np.argsort(order, kind="stable")))


def joined(tables: list[pa.Table]) -> pa.Table:
    """Tables one after the other, with one dictionary for each column of texts."""
    return pa.concat_tables(table.unify_dictionaries() for table in tables).unify_dictionaries()
