"""The split into training and validation cells: by a filter, or a random share keyed by cell and atlas."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.atlas.obs_filter import parse
from scgpt_ray.schema import JOINID


def validation_mask(
    tokens: pa.Table, condition: str | None, share: float, seed: int, *, atlas: str, where: str
) -> npt.NDArray[np.bool_]:
    """Choose the validation cells.

    Args:
        tokens: TOKENS, or any table of cells with the columns of the condition.
        condition: Filter on obs columns; None for a random share.
        share: Share of the cells, 0 to 1.
        seed: Seed of the share.
        atlas: Name of the atlas within the run: two atlases draw differently, and one draws the same wherever it is
            stored.
        where: The atlas, for messages.

    Returns:
        bool [n], True for validation cells.

    Raises:
        AtlasError: If the condition is invalid.
    """
    if condition is not None:
        return parse(condition, tokens.schema, where, "--validation-filter").mask(tokens)
    key = int.from_bytes(hashlib.sha256(f"{seed} {atlas}".encode()).digest()[:8])
    draws = [np.random.Philox(key=[key, joinid]).random_raw() for joinid in tokens[JOINID].to_numpy()]
    return np.array(draws, np.uint64) < share * 2.0**64
