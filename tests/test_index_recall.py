import numpy as np
import pytest

from scgpt_ray.index.recall import choose_nprobe, recall_at


@pytest.mark.parametrize(
    ("found", "true", "expected"),
    [
        ([[1, 2, 3]], [[3, 2, 1]], 1.0),
        ([[1, 2, 3]], [[4, 5, 6]], 0.0),
        ([[1, 2], [3, 4]], [[1, 9], [3, 4]], 0.75),
        ([[1, -1, -1]], [[1, 2, -1]], 0.5),
        ([[-1, -1]], [[7, -1]], 0.0),
        ([[1, 2, 3, 4]], [[1, 5]], 0.5),
    ],
)
def test_recall_is_the_part_of_the_true_neighbours_found(found, true, expected):
    assert recall_at(np.array(found), np.array(true)) == expected


def search_with(recall_of, asked):
    """A search over 1,000 true neighbours that finds the given part of them."""

    def find(nprobe):
        asked.append(nprobe)
        found = np.arange(1000)
        found[round(recall_of(nprobe) * 1000) :] += 10_000
        return found.reshape(100, 10)

    return find


TRUTH = np.arange(1000).reshape(100, 10)


@pytest.mark.parametrize(
    ("recall_of", "nlist", "target", "expected", "asked"),
    [
        (lambda _: 1.0, 64, 0.95, (1, 1.0), [1]),
        (lambda nprobe: min(1, nprobe / 10), 64, 0.75, (8, 0.8), [1, 2, 4, 8]),
        (lambda nprobe: min(1, nprobe / 10), 6, 0.95, (6, 0.6), [1, 2, 4, 6]),
        (lambda _: 0.7, 1, 0.95, (1, 0.7), [1]),
        # A codec that loses a fifth: looking everywhere would not help.
        (lambda nprobe: min(0.8, nprobe / 10), 4096, 0.95, (8, 0.8), [1, 2, 4, 8, 16, 32]),
        # A slow start is no plateau as long as two doublings gain.
        (lambda nprobe: 0.5 + 0.001 * nprobe, 4096, 0.6, (128, 0.628), [1, 2, 4, 8, 16, 32, 64, 128]),
    ],
)
def test_nprobe_doubles_to_the_target_or_the_plateau(recall_of, nlist, target, expected, asked):
    seen = []
    assert choose_nprobe(search_with(recall_of, seen), TRUTH, nlist, target) == expected
    assert seen == asked
