"""UMAP coordinates of embeddings, for pictures."""

import warnings
from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt

from scgpt_ray.errors import InputError, optional
from scgpt_ray.evaluation.neighbors import with_self
from scgpt_ray.evaluation.sample import MIN_CELLS
from scgpt_ray.index.search import exact_search
from scgpt_ray.schema import Float32Matrix, Int64Array

_N_NEIGHBORS = 15


def umap_coordinates(vectors_ND: Float32Matrix, *, seed: int) -> npt.NDArray[np.float32]:
    """Compute two-dimensional UMAP coordinates (McInnes 2018, arXiv:1802.03426) with the cosine distance.

    Neighbours are exact. UMAP's own approximate search first compiles in each process, for up to a minute.

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
        import umap  # slow to import
    _keep_compiled(umap.umap_, umap.layouts, umap.utils)
    n = len(vectors_ND)
    if n < MIN_CELLS:
        raise InputError(f"{n} cells for a UMAP", expected=f"at least {MIN_CELLS}", remedy="use more cells")
    neighbors = _neighbors(vectors_ND)
    # A seed implies n_jobs=1; passing it avoids a warning.
    layout = umap.UMAP(
        n_neighbors=_N_NEIGHBORS, metric="cosine", random_state=seed, n_jobs=1, precomputed_knn=neighbors
    )
    with warnings.catch_warnings():
        # Without a search index other cells cannot be placed later, which is not needed here.
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]", category=UserWarning)
        return np.asarray(layout.fit_transform(vectors_ND), np.float32)


@cache
def _keep_compiled(*modules: ModuleType) -> None:
    """Have numba keep on disk what it compiles of these modules: without, it takes five seconds in each process.

    As with our own functions, next to their files or, where those cannot be written, in the user's cache.
    """
    from numba.core.dispatcher import Dispatcher

    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Dispatcher):
                value.enable_caching()


def _neighbors(vectors_ND: Float32Matrix) -> tuple[Int64Array, npt.NDArray[np.float32]]:
    """Nearest cells by cosine distance, each cell first among its own; positions and distances, [n, k]."""
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = vectors_ND / np.maximum(norms_N1, np.finfo(np.float32).tiny)
    own_N1 = np.arange(len(unit_ND))[:, None]
    places_NK, scores_NK = exact_search([(own_N1[:, 0], unit_ND)], unit_ND, _N_NEIGHBORS)
    others_NK = np.argsort(places_NK == own_N1, axis=1, kind="stable")[:, :-1]  # all but the cell, or the last one
    distances_NK = np.maximum(1 - np.take_along_axis(scores_NK, others_NK, axis=1), 0)
    return with_self(np.take_along_axis(places_NK, others_NK, axis=1), distances_NK)
