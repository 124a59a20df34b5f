"""Where the counts of a file or of an AnnData are."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import h5py
import numpy as np
import scipy.sparse

from scgpt_ray.errors import AtlasError

logger = logging.getLogger(__name__)

X, RAW = "X", "raw"
"""Names of the matrix X and of that of .raw; any other name is that of a layer."""

_ORDER = ("counts", RAW, X)
_VALUES_SEEN = 2**18
"""Values that are looked at to tell counts from normalised values."""


def choose_layer(where: str, existing: Sequence[str], values: Callable[[str], Any]) -> str:
    """The first of the layer `counts`, .raw and X that holds integers; X if none does.

    X then holds normalised values, whose order within a cell is all that tokens depend on. A single matrix is not
    looked at: its values may be damaged.

    Args:
        where: The file or object, for messages.
        existing: Names of its matrices.
        values: Name -> its matrix: of scipy or numpy, an h5py dataset, or an h5py group of a sparse matrix.

    Raises:
        AtlasError: If none does, and there is no X.
    """
    if len(existing) == 1 and existing[0] in _ORDER:
        return existing[0]
    found = next((name for name in _ORDER if name in existing and _holds_counts(values(name))), None)
    if found is None and X not in existing:
        raise no_layer(where, X, existing)
    if found is None:
        logger.warning("%s: no integer counts in %s; the values of X are used", where, ", ".join(existing))
    else:
        logger.info("%s: counts are read from %s (of %s)", where, found, ", ".join(existing))
    return found or X


def _holds_counts(matrix: Any) -> bool:
    """Whether the first values are integers >= 0."""
    if scipy.sparse.issparse(matrix):
        seen = matrix.data[:_VALUES_SEEN]
    elif isinstance(matrix, h5py.Group):
        seen = matrix["data"][:_VALUES_SEEN]
    elif len(matrix.shape or ()) != 2:  # noqa: PLR2004 - no matrix, which is refused when it is opened
        return False
    else:
        seen = np.asarray(matrix[: max(1, _VALUES_SEEN * len(matrix) // max(1, matrix.size))])
    return bool(seen.dtype.kind in "biuf" and (seen >= 0).all() and (seen == np.floor(seen)).all())


def no_layer(where: str, layer: str, existing: Sequence[str]) -> AtlasError:
    """The error for a layer that does not exist."""
    return AtlasError(
        f"{where}: no layer {layer}",
        expected=f"one of {', '.join(existing) or '(none found)'}",
        remedy="name it with --layer",
    )
