"""How well embeddings of validation cells tell their labels apart.

Two quick measures for following a run; AvgBIO needs a search over clusterings, which `integrate` does.

Shapes: N cells, D dimensions, K neighbours.
"""

import numpy as np
import numpy.typing as npt
from sklearn.metrics import silhouette_score

from scgpt_ray.evaluation.neighbors import nearest
from scgpt_ray.mapping.votes import tally_votes

ACCURACY, SILHOUETTE = "label_accuracy", "label_asw"
K = 10
"""Neighbours that vote."""


def label_metrics(vectors_ND: npt.NDArray[np.float32], codes_N: npt.NDArray[np.int64]) -> dict[str, float]:
    """Measure labelled cells.

    Args:
        vectors_ND: Embeddings, L2-normalised, [N, D].
        codes_N: Code of the label of each, [N].

    Returns:
        `label_accuracy`, the share of the cells that get their own label by a majority of the K nearest other cells
        (ties go to the nearer cells), and `label_asw`, the mean silhouette width of the labels, scaled to 0..1 as scIB
        does; empty for fewer than two labels or where each cell has its own.
    """
    n_labels = len(np.unique(codes_N))
    if not 1 < n_labels < len(codes_N):
        return {}
    places_NK, distances_NK = nearest(vectors_ND, min(K, len(codes_N) - 1))
    votes = tally_votes(codes_N[places_NK].astype(np.int32), -distances_NK, int(codes_N.max()) + 1)
    width = float(silhouette_score(vectors_ND, codes_N))
    return {ACCURACY: float((votes.top == codes_N).mean()), SILHOUETTE: (width + 1) / 2}
