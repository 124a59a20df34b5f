import numpy as np
import pytest

from scgpt_ray.index.recall import RecallSample, choose_params, cost_model, point_at, recall_at
from scgpt_ray.index.searcher import SearchParams


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
    """A search over 1,000 true neighbours that finds the part of them that search parameters is given."""

    def find(queries, k, params):
        assert k == 11
        asked.append((params.nprobe, params.rerank))
        found = np.arange(1000)
        found[round(recall_of(params.nprobe, params.rerank) * 1000) :] += 10_000
        ids = np.hstack([np.full((100, 1), 77_777), found.reshape(100, 10)])
        return ids, np.zeros(ids.shape, np.float32)

    return find


EXAM = RecallSample(
    np.full(100, 77_777),
    np.zeros((100, 2), np.float32),
    np.arange(1000).reshape(100, 10),
    np.zeros((100, 10), np.float32),
)


@pytest.mark.parametrize(
    ("recall_of", "nlist", "target", "chosen"),
    [
        (lambda _n, _r: 1.0, 64, 0.95, (1, 20)),
        (lambda n, _: min(1, n / 10), 64, 0.75, (8, 20)),
        (lambda n, _: min(1, n / 10), 6, 0.95, (6, 20)),  # out of reach: all lists, no candidates in vain
        (lambda _n, _r: 0.7, 1, 0.95, (1, 20)),
        (lambda n, _: min(0.8, n / 10), 4096, 0.95, (8, 20)),  # a plateau
        (lambda n, r: min(1, n / 8) * min(1, r / 160), 64, 0.9, (8, 160)),
        # Twice the lists are cheaper than four times the candidates.
        (lambda n, r: 1.0 if (n >= 4 and r >= 640) or (n >= 8 and r >= 40) else 0.5, 64, 0.95, (8, 40)),
    ],
)
def test_the_cheapest_effort_that_meets_the_target(recall_of, nlist, target, chosen):
    asked = []
    cost = cost_model("PCAR16,IVF64,PQ8x4fsr", 64, 100_000, 64)
    point, curve = choose_params(EXAM, search_with(recall_of, asked), nlist, cost, target)
    assert (point.nprobe, point.rerank) == chosen
    assert [(entry.nprobe, entry.rerank) for entry in curve] == asked
    assert point in curve
    assert point.recall_at_10 == pytest.approx(recall_of(*chosen), abs=1e-3)


def test_the_nearest_among_ten_and_the_ten_among_ten():
    """The true nearest is found tenth by three of four queries; of the other nine, each query finds one."""
    truth, own = np.arange(40).reshape(4, 10), np.full(4, 77)
    found = truth + 100
    found[:, 0], found[:3, 9] = truth[:, 5], truth[:3, 0]
    recall_sample = RecallSample(own, np.zeros((4, 2), np.float32), truth, np.zeros((4, 10), np.float32))

    def search(queries, k, params):
        return np.hstack([own[:, None], found]), np.zeros((4, 11), np.float32)

    point = point_at(SearchParams(1, 40), recall_sample, search, lambda _: 0)
    assert (point.recall_1_at_10, point.recall_at_10) == (3 / 4, pytest.approx(7 / 40))


def test_what_an_effort_costs():
    cost = cost_model("PCAR80,IVF1024,PQ40x4fsr", 512, 1_000_000, 1024)
    assert cost(SearchParams(512, 0)) == 500_000 * 28
    assert cost(SearchParams(1, 40)) - cost(SearchParams(1, 0)) == 4 * 40 * 1024
    assert cost(SearchParams(9999, 0)) == cost(SearchParams(1024, 0))
