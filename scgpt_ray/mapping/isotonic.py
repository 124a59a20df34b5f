"""Isotonic regression: the nondecreasing curve with the least squared error.

Shapes: N cells, B blocks.
"""

import numpy as np

from scgpt_ray.mapping.vote import Floats


def isotonic_blocks(values_N: Floats, outcomes_N: Floats) -> tuple[Floats, Floats, Floats]:
    """Pool adjacent violators (Ayer et al. 1955, doi:10.1214/aoms/1177728423).

    Args:
        values_N: float64 [N], N at least 1; equal values share a block.
        outcomes_N: float64 [N].

    Returns:
        Least value, greatest value and level of each block, float64 [B]; values and levels increase strictly.
    """
    assert len(values_N) == len(outcomes_N) > 0, (len(values_N), len(outcomes_N))
    distinct, place_N = np.unique(values_N, return_inverse=True)
    cells = np.bincount(place_N)
    sums = np.bincount(place_N, outcomes_N)
    pooled: list[tuple[float, float, float, int]] = []
    for value, total, n in zip(distinct.tolist(), sums.tolist(), cells.tolist(), strict=True):
        least, greatest, block_total, block_n = value, value, total, n
        while pooled and pooled[-1][2] * block_n >= block_total * pooled[-1][3]:
            least, _, earlier_total, earlier_n = pooled.pop()
            block_total, block_n = block_total + earlier_total, block_n + earlier_n
        pooled.append((least, greatest, block_total, block_n))
    least_B, greatest_B, total_B, n_B = np.array(pooled, np.float64).T
    return least_B, greatest_B, total_B / n_B
