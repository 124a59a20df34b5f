"""What an index folder says about itself: `index.json`, written last."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index.shard import ShardDescription
from scgpt_ray.storage import Folder

FORMAT_VERSION = 2
METRIC = "cosine"

INDEX = "index.json"
TEMPLATE = "template.faiss"
CENTRE = "centre.npy"
RECALL = "recall.json"


@dataclass(frozen=True)
class IndexDescription:
    """All that a search needs to know, and what was measured when the index was built."""

    request: Mapping[str, Any]
    """What was asked for, with defaults filled in; equal requests give equal indexes."""
    factory: str
    """faiss factory string of the template."""
    d: int
    """Width of the vectors."""
    n_cells: int
    """Vectors in all shards together."""
    nprobe: int
    """Inverted lists to look into for the recall below."""
    rerank: int
    """Candidates of a shard that are ranked again by their vectors, at least ten a neighbour; 0 for none."""
    recall_at_10: float
    """Part of the true ten nearest neighbours found, measured on a sample."""
    recall_queries: int
    """Cells in that sample."""
    shards: tuple[ShardDescription, ...]
    """In the order of their numbers."""
    label_columns: tuple[str, ...]
    """Columns of the label tables, without soma_joinid."""
    fingerprint: Mapping[str, Any]
    """Fingerprint of the embeddings; a query must be embedded with the same."""
    embeddings: str
    """Where the first embeddings came from."""
    appended: tuple[str, ...] = ()
    """Where those came from that were added later."""
    metric: str = METRIC
    format_version: int = FORMAT_VERSION

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

    def to_json(self) -> bytes:
        """The content of index.json, the same bytes for equal descriptions."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> "IndexDescription":
        """Read index.json.

        Args:
            content: Of the file.
            where: Its place, for messages.

        Raises:
            ReferenceSetError: If it is not what this version of scgpt_ray writes.
        """
        try:
            values = json.loads(content)
        except ValueError as error:
            raise _unusable(where, f"is not JSON: {error}") from None
        found = values.get("format_version") if isinstance(values, dict) else None
        if found != FORMAT_VERSION:
            raise _unusable(where, f"has format_version {found!r}")
        try:
            description = cls(**_retyped(values))
        except (KeyError, TypeError) as error:
            raise _unusable(where, f"has missing, unknown or mistyped entries: {error}") from None
        if description.metric != METRIC:
            raise _unusable(where, f"has the metric {description.metric}")
        if sum(shard.n_cells for shard in description.shards) != description.n_cells:
            raise _unusable(where, f"says {description.n_cells} cells, its shards sum to something else")
        return description


def read_index(folder: Folder) -> IndexDescription | None:
    """The description of a finished index, or None.

    Raises:
        ReferenceSetError: If there is an index.json that cannot be used.
    """
    if not folder.has(INDEX):
        return None
    return IndexDescription.from_json(folder.read(INDEX), folder.where(INDEX))


def require_index(folder: Folder) -> IndexDescription:
    """The description of an index that others build on.

    Raises:
        ReferenceSetError: If the folder is not that of a finished index.
    """
    index = read_index(folder)
    if index is None:
        unfinished = folder.has(TEMPLATE)
        raise ReferenceSetError(
            f"{folder.uri} has no {INDEX}",
            expected="the output folder of a finished index",
            remedy="run the same index command again to finish it" if unfinished else "give its path to --index",
        )
    return index


def _retyped(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists where the description has tuples; every entry's type is checked."""
    plain = {"d": int, "n_cells": int, "nprobe": int, "rerank": int, "recall_queries": int, "recall_at_10": float}
    expected = {field.name: plain.get(field.name, str) for field in fields(IndexDescription)}
    expected |= {
        "shards": list,
        "label_columns": list,
        "appended": list,
        "fingerprint": dict,
        "request": dict,
        "format_version": int,
    }
    _require_types(values, expected)
    for shard in values["shards"]:
        _require_types(shard, {"name": str, "n_cells": int, "labels": str, "ids": str})
    for name in ("label_columns", "appended"):
        _require_types(dict(enumerate(values[name])), dict.fromkeys(range(len(values[name])), str))
    shards = tuple(ShardDescription(**shard) for shard in values["shards"])
    return {
        **values,
        "shards": shards,
        "label_columns": tuple(values["label_columns"]),
        "appended": tuple(values["appended"]),
    }


def _require_types(values: Mapping[Any, Any], expected: Mapping[Any, type]) -> None:
    for name, kind in expected.items():
        if type(values[name]) is not kind:
            raise TypeError(f"{name} is {values[name]!r}")


def _unusable(where: str, problem: str) -> ReferenceSetError:
    return ReferenceSetError(
        f"{where} {problem}",
        expected=f"the description of an index, format {FORMAT_VERSION}",
        remedy="build the index again with this version of scgpt-ray",
    )
