"""UMAP coordinates of embeddings, for pictures."""

import warnings

import numpy as np
import numpy.typing as npt

from scgpt_ray.errors import InputError, optional
from scgpt_ray.evaluation.sample import MIN_CELLS
from scgpt_ray.schema import Float32Matrix

_N_NEIGHBORS = 15


def umap_coordinates(vectors_ND: Float32Matrix, *, seed: int) -> npt.NDArray[np.float32]:
    """Compute two-dimensional UMAP coordinates (McInnes 2018, arXiv:1802.03426) with the cosine distance.

    Args:
        vectors_ND: float32 [n, d], n at least MIN_CELLS.
        seed: Makes the result reproducible on one machine, for which UMAP uses a single thread.

    Returns:
        float32 [n, 2].

    Raises:
        ConfigError: If umap-learn is not installed.
        InputError: If there are too few vectors.
    """
    with optional("UMAP", "umap-learn"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # about TensorFlow, which is not needed here
        import umap  # slow to import: it compiles
    n = len(vectors_ND)
    if n < MIN_CELLS:
        raise InputError(f"{n} cells for a UMAP", expected=f"at least {MIN_CELLS}", remedy="use more cells")
    # A seed implies n_jobs=1; passing it avoids a warning.
    layout = umap.UMAP(n_neighbors=_N_NEIGHBORS, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(layout.fit_transform(vectors_ND), np.float32)
