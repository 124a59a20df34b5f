"""The records of an index."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import model_validator

from scgpt_ray.identity import Fingerprint
from scgpt_ray.records.record import Count, FileName, Fraction, Record, Size


@dataclass(frozen=True)
class ShardDescription:
    """The files of a shard and what they hold; names are relative to the index folder."""

    name: FileName
    n_cells: Count
    labels: FileName
    ids: FileName
    vectors: FileName | None
    """None where the index itself is exact."""
    removed: FileName | None = None
    """The soma_joinids of rows that are no longer part of the index, sorted; None without such rows."""
    n_removed: Count = 0

    @property
    def n_left(self) -> int:
        """Number of its cells that are part of the index."""
        return self.n_cells - self.n_removed

    @classmethod
    def of(cls, number: int, n_cells: int, *, is_exact: bool) -> "ShardDescription":
        """Name the files of a shard by its number."""
        return cls(
            name=f"shard-{number:05d}.faiss",
            n_cells=n_cells,
            labels=f"labels-{number:05d}.parquet",
            ids=f"ids-{number:05d}.npy",
            vectors=None if is_exact else f"vectors-{number:05d}.npy",
        )

    @property
    def number(self) -> int:
        """Number of the shard in its index."""
        return int(self.name.removeprefix("shard-").removesuffix(".faiss"))

    @property
    def marker(self) -> str:
        """Name of its commit marker."""
        return self.name.removesuffix(".faiss") + ".json"

    @property
    def files(self) -> list[str]:
        """All of them, without the commit marker."""
        return [name for name in (self.name, self.ids, self.vectors, self.labels, self.removed) if name is not None]


class CommitMarker(Record):
    """The commit marker of a shard, written last."""

    file = "shard-00000.json"
    remedy = "build the index again"

    request: str
    """Digest of what decides the content of the shard."""
    shard: ShardDescription
    bytes: dict[FileName, Size]
    """File name -> size."""


class IndexDescription(Record):
    """All that a search needs to know, and what was measured when the index was built."""

    file = "index.json"
    remedy = "build the index again with this version of scgpt-ray; without its index.json, shards are kept"

    format: Literal[6] = 6
    metric: Literal["cosine"] = "cosine"
    request: dict[str, Any]
    """What was asked for, with defaults filled in; equal requests give equal indexes."""
    factory: str
    """faiss factory string of the template."""
    d: Size
    """Width of the vectors."""
    n_cells: Count
    """Vectors in all shards together."""
    nprobe: Size
    """Inverted lists to look into for the recall below."""
    rerank: Count
    """Candidates, of all shards together, that are ranked again by their vectors for ten neighbours; 0 for none."""
    recall_at_10: Fraction
    """Part of the true ten nearest neighbours found, measured on a sample."""
    recall_queries: Count
    """Cells in that sample."""
    shards: tuple[ShardDescription, ...]
    """In the order of their numbers."""
    label_columns: tuple[str, ...]
    """Columns of the label tables, without soma_joinid."""
    fingerprint: Fingerprint
    """Of the first embeddings; a query must be embedded with the same model."""
    embeddings: str
    """Where the first embeddings came from."""
    checkpoint: str
    """The checkpoint of these embeddings as `embed` was given it, a folder by its whole path; `not stated` if unknown.
    Only its fingerprint decides whether a query fits."""
    appended: tuple[str, ...] = ()
    """Where those came from that were added later."""
    license: str = "not stated"
    """Licence of the index, for those who are given it."""

    @model_validator(mode="after")
    def _shards_hold_the_cells(self) -> Self:
        held = sum(shard.n_left for shard in self.shards)
        if held != self.n_cells:
            raise ValueError(f"{self.n_cells} cells, but {held} in its shards")
        return self

    def text(self) -> str:
        """A line for people."""
        return (
            f"{self.n_cells} cells indexed as {self.factory} in {len(self.shards)} shards, recall@10 "
            f"{self.recall_at_10:.4f} at nprobe {self.nprobe}, rerank {self.rerank}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The main figures, for programs."""
        return {
            "factory": self.factory,
            "n_cells": self.n_cells,
            "shards": len(self.shards),
            "nprobe": self.nprobe,
            "rerank": self.rerank,
            "recall_at_10": self.recall_at_10,
        }
