"""Which cells are kept out of training: those a condition names, or a share by the ids of cell and atlas alone."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scgpt_ray.atlas.obs_filter import parse
from scgpt_ray.schema import JOINID


def validation(
    tokens: pa.Table, condition: str | None, share: float, seed: int, *, atlas: str, where: str
) -> npt.NDArray[np.bool_]:
    """Choose the cells to keep out.

    Args:
        tokens: TOKENS, or any table of cells with the columns of the condition.
        condition: On obs columns; None to keep out a share.
        share: Of the cells, 0 to 1.
        seed: Of the share.
        atlas: Name of the atlas among those of the run: two of them draw differently, and the same one draws the same
            wherever it lies.
        where: The atlas, for messages.

    Returns:
        bool [n].

    Raises:
        AtlasError: If the condition makes no sense.
    """
    if condition is not None:
        return parse(condition, tokens.schema, where, "--validation-filter").mask(tokens)
    key = int.from_bytes(hashlib.sha256(f"{seed} {atlas}".encode()).digest()[:8])
    draws = [np.random.Philox(key=[key, joinid]).random_raw() for joinid in tokens[JOINID].to_numpy()]
    return np.array(draws, np.uint64) < share * 2.0**64
