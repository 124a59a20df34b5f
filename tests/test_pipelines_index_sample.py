"""Cells drawn from parts."""

import numpy as np
import pytest

from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import read_part
from scgpt_ray.pipelines import index_sample
from scgpt_ray.pipelines.index_sample import Draw, samples

N, EMPTY = 300, (0, 1, 2, 3, 150)


@pytest.fixture(scope="module")
def reference(make_embeddings, tmp_path_factory):
    """38 parts; the first of them is half empty."""
    return make_embeddings(tmp_path_factory.mktemp("reference") / "run", n_cells=N, empty=EMPTY, dimension=16)


def sample(run, n, seed):
    [found] = samples(run, require_manifest(run), [Draw(n, seed)])
    return found


def test_samples_of_one_pass_are_those_of_several(reference):
    draws = [Draw(50, 1), Draw(7, 2), Draw(0, 3), Draw(1000, 4)]
    together = samples(reference, require_manifest(reference), draws)
    for found, draw in zip(together, draws, strict=True):
        for values, alone in zip(found, sample(reference, *draw), strict=True):
            np.testing.assert_array_equal(values, alone)


@pytest.mark.parametrize("n", [0, 1, 50, 295, 1000])
def test_a_sample_is_drawn_evenly_without_repetition(reference, n):
    ids, vectors = sample(reference, n, seed=1)
    assert vectors.shape == (min(n, N - len(EMPTY)), 16)
    assert len(set(ids.tolist())) == len(ids) == len(vectors)
    assert not {joinid - 10 for joinid in ids.tolist()} & set(EMPTY)
    again, _ = sample(reference, n, seed=1)
    assert again.tolist() == ids.tolist()
    if n == 50:
        assert 30 < np.mean(ids) - 10 < 270
        assert sample(reference, n, seed=2)[0].tolist() != ids.tolist()


def test_few_cells_are_drawn_of_few_parts_however_many_are_empty(make_embeddings, tmp_path, monkeypatch):
    run = make_embeddings(tmp_path / "run", n_cells=4000, cells_per_part=20, empty=range(0, 4000, 2))
    opened = []

    def counted(parts, name, columns):
        opened.append(name)
        return read_part(parts, name, columns)

    monkeypatch.setattr(index_sample, "read_part", counted)
    ids, vectors = sample(run, 5, seed=1)
    assert (len(set(ids.tolist())), vectors.shape) == (5, (5, 8))
    assert len(opened) < 110, "of 200 parts"
    for n in (1, 40, 1000, 2000, 3000):
        assert len(sample(run, n, seed=2)[0]) == min(n, 2000)
