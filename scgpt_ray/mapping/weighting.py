"""How much a neighbour's vote counts.

Shapes: Q queries, K neighbours, G groups.
"""

import numpy as np

from scgpt_ray.mapping.vote import ABSTAINS, Codes, Floats
from scgpt_ray.schema import Float32Matrix, Int64Array


def distance_weights(codes_QK: Codes, scores_QK: Float32Matrix) -> Floats:
    """Weights that fall from 1 for the nearest voter to 0 for the farthest.

    w_j = (s_j - s_k) / (s_1 - s_k), and 1 where s_1 = s_k: the rule of Dudani (1976, The distance-weighted
    k-nearest-neighbor rule, doi:10.1109/TSMC.1976.5408784) with scores for distances. It has no bandwidth, and is the
    same for cosine similarity and negated squared distance of unit vectors, because it ignores scale and origin.

    Args:
        codes_QK: int32 [Q, K]; who has -1 does not vote and is neither nearest nor farthest.
        scores_QK: float32 [Q, K].

    Returns:
        float64 [Q, K]; 0 for who does not vote.
    """
    votes_QK = codes_QK != ABSTAINS
    scores_QK = scores_QK.astype(np.float64)
    nearest_Q1 = np.max(scores_QK, axis=1, keepdims=True, initial=-np.inf, where=votes_QK)
    farthest_Q1 = np.min(scores_QK, axis=1, keepdims=True, initial=np.inf, where=votes_QK)
    weights_QK: Floats = votes_QK.astype(np.float64)
    np.divide(
        scores_QK - farthest_Q1,
        nearest_Q1 - farthest_Q1,
        out=weights_QK,
        where=votes_QK & (nearest_Q1 > farthest_Q1),
    )
    return weights_QK


def balance_weights(group_QK: Codes, cells_G: Int64Array) -> Floats:
    """Weights that give every group of reference cells the same total.

    w_g = N / (G n_g) with N reference cells in G groups, n_g of them in group g: 1 for a group of mean size
    (King and Zeng 2001, doi:10.1093/oxfordjournals.pan.a004868).

    Args:
        group_QK: int32 [Q, K], the neighbours' groups; -1 for none, whose weight is 0.
        cells_G: int64 [G], reference cells of each group, at least 1.
    """
    weight_G = cells_G.sum() / (len(cells_G) * cells_G)
    # The entry behind the last group is what -1 picks.
    return np.append(weight_G, 0.0)[group_QK]
