"""What changes the numbers of a run, and only that."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a set of embeddings.

    Attributes:
        model: What maps a cell to a vector: weights, vocabulary, token rules, precision. Two sets of embeddings with
            an equal `model` share one space.
        cells: Which cells: atlas, snapshot, filter, layer, genes, carried columns.
    """

    model: dict[str, Any]
    cells: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"model": self.model, "cells": self.cells}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Fingerprint":
        """The inverse of `to_dict`."""
        return cls(model=values["model"], cells=values["cells"])

    @property
    def digest(self) -> str:
        """Sha256 (hex) of the canonical JSON; written into every part."""
        return digest_of(self.to_dict())

    def differences(self, other: "Fingerprint") -> str:
        """Name what differs, as `key: ours against theirs`, in one line."""
        mine, theirs = ({**f.model, **f.cells} for f in (self, other))
        return ", ".join(
            f"{key}: {mine.get(key)!r} against {theirs.get(key)!r}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        )


def digest_of(values: Any) -> str:
    """Sha256 (hex) of JSON values, however their keys are ordered."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
