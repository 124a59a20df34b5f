"""The record of a training run."""

from typing import Any, Literal

from scgpt_ray.records.record import Record


class PretrainRequest(Record):
    """What fixes the result of training; equal requests give equal checkpoints."""

    file = "request.json"
    remedy = "restore the file, or start again in a new output folder"

    format: Literal[2] = 2
    settings: dict[str, Any]
    """Those that change a number, without those that name a place."""
    atlases: list[dict[str, Any]]
    """Identity of each atlas, with the digest of its genes."""
    vocabulary: str
    """Digest."""
    checkpoint: str | None
    """Digest of the weights that training starts from."""
    token_rules: int
