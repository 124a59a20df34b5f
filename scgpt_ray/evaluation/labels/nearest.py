"""What the nearest reference cells in an embedding say: the mapping without an index, for comparisons."""

import numpy as np
import numpy.typing as npt

from scgpt_ray.index.search import exact_search
from scgpt_ray.mapping.votes import tally_votes
from scgpt_ray.schema import Float32Matrix


def nearest_labels(
    reference_ND: Float32Matrix, labels_N: npt.NDArray[np.object_], query_QD: Float32Matrix, k: int
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float32]]:
    """Label query cells by a majority of their k nearest reference cells.

    Args:
        reference_ND: Unit vectors.
        labels_N: Label of each.
        query_QD: Unit vectors.
        k: Neighbours that vote.

    Returns:
        Labels [Q], and the share of the votes that each got [Q].
    """
    names, codes_N = np.unique(labels_N.astype(str), return_inverse=True)
    ids_QK, scores_QK = exact_search([(np.arange(len(reference_ND)), reference_ND)], query_QD, k)
    # Behind the last code stands that of no neighbour, whose id is -1.
    codes_QK = np.append(codes_N, -1).astype(np.int32)[ids_QK]
    tally = tally_votes(codes_QK, scores_QK, len(names))
    return names[tally.top].astype(object), tally.share.astype(np.float32)
