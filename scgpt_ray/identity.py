"""What changes the numbers of a run, and only that; and how two runs differ."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scgpt_ray.errors import OutputError, ReferenceSetError


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

    @property
    def most_tokens(self) -> float:
        """Most tokens of a cell, the first of which is <cls>; infinite for an encoder that leaves out none."""
        return float(self.model.get("max_length", math.inf))

    @property
    def digest(self) -> str:
        """Sha256 (hex) of the canonical JSON; written into every part."""
        return digest_of(asdict(self))


def digest_of(values: Any) -> str:
    """Sha256 (hex) of JSON values, however their keys are ordered."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Name the keys in which JSON values differ, as `key: one against other`, in one line; empty for equal values.

    Keys of nested mappings are joined with dots, and so are places in lists of mappings.
    """
    mine, theirs = dict(_leaves(one)), dict(_leaves(other))
    return ", ".join(
        f"{key}: {mine.get(key)!r} against {theirs.get(key)!r}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            yield from _leaves({str(place): item for place, item in enumerate(value)}, f"{prefix}{key}.")
        elif isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def require_same_run(place: str, asked: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Refuse to mix two runs in one output folder.

    Args:
        place: The folder, for the message.
        asked: Identity of the requested run, as JSON values.
        there: That of the run whose output is there.

    Raises:
        OutputError: If they differ, naming both and every key in which they do.
    """
    if asked != there:
        raise OutputError(
            f"{place} holds run {digest_of(there)[:12]}, this is {digest_of(asked)[:12]} ({differences(asked, there)})",
            expected="the request that the run there began with",
            remedy="give --output another folder",
        )


def require_same_model(one: str, mine: Mapping[str, Any], other: str, theirs: Mapping[str, Any]) -> None:
    """Refuse to compare vectors of two spaces.

    Args:
        one: Whose the first model is, for the message.
        mine: `Fingerprint.model` of it.
        other: Whose the second is.
        theirs: Likewise.

    Raises:
        ReferenceSetError: If they differ, naming every key in which they do.
    """
    if mine != theirs:
        raise ReferenceSetError(
            f"{one} and {other} differ in the model ({differences(mine, theirs)})",
            expected="the checkpoint and token rules that the reference was embedded with",
            remedy="give that one to --checkpoint, or embed and index the reference again",
        )
