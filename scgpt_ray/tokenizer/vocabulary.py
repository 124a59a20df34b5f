"""The vocabulary: gene name -> token."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scgpt_ray.errors import CheckpointError

PAD = "<pad>"
CLS = "<cls>"
EOC = "<eoc>"
SPECIALS = (PAD, CLS, EOC)
"""Special tokens, in the order in which missing ones are appended."""

UINT16_TOKENS = 2**16
"""Largest size of a vocabulary whose tokens fit into uint16."""


@dataclass(frozen=True)
class Vocabulary:
    """Gene names and special tokens, numbered 0 to size - 1.

    Special tokens that are missing are appended at the end, as upstream does.
    """

    tokens: Mapping[str, int]

    def __post_init__(self) -> None:
        tokens = dict(self.tokens)
        assert sorted(tokens.values()) == list(range(len(tokens))), "tokens are numbered 0 to size - 1"
        for special in SPECIALS:
            tokens.setdefault(special, len(tokens))
        object.__setattr__(self, "tokens", tokens)

    @classmethod
    def from_json(cls, content: bytes, where: str) -> "Vocabulary":
        """Read the content of a vocab.json.

        Args:
            content: A JSON object of gene name to token.
            where: Path of the file, for messages.

        Raises:
            CheckpointError: If it is not such an object, a name or token repeats, or a token is missing.
        """
        try:
            pairs = json.loads(content, object_pairs_hook=list)
        except ValueError as error:
            raise _unusable(f"{where} is not JSON: {error}") from error
        if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
            raise _unusable(f"{where} is not a JSON object")
        names: dict[int, str] = {}
        for name, token in pairs:
            if type(token) is not int:  # bool is an int to isinstance
                raise _unusable(f"{where} gives {name!r} the token {token!r}")
            if not 0 <= token < len(pairs):
                raise _unusable(f"{where} gives {name!r} the token {token}, but has {len(pairs)} names")
            if token in names:
                raise _unusable(f"{where} gives the token {token} to both {names[token]!r} and {name!r}")
            names[token] = name
        tokens = dict(pairs)
        if len(tokens) < len(pairs):
            twice = next(name for token, name in names.items() if tokens[name] != token)
            raise _unusable(f"{where} has the name {twice!r} twice")
        return cls(tokens)

    @property
    def size(self) -> int:
        """Number of tokens, including special tokens."""
        return len(self.tokens)

    @property
    def cls_token(self) -> int:
        """Token of <cls>, which represents the whole cell."""
        return self.tokens[CLS]

    @property
    def gene_dtype(self) -> type[np.uint16] | type[np.int32]:
        """Narrowest dtype, supported by Arrow and torch, that holds every token."""
        return np.uint16 if self.size <= UINT16_TOKENS else np.int32

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the names in order of token, independent of the format and order of the file."""
        names: list[str] = sorted(self.tokens, key=self.tokens.__getitem__)
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _unusable(found: str) -> CheckpointError:
    return CheckpointError(
        found,
        expected="a JSON object that numbers its names 0, 1, 2, ...",
        remedy="copy the checkpoint's vocab.json again",
    )
