import threading

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from scgpt_ray.atlas.prefetch import in_order


@pytest.mark.parametrize("ahead", [0, 1, 3, 9])
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_results_keep_the_order(ahead, n):
    assert list(in_order(lambda item: item * item, range(n), ahead)) == [item * item for item in range(n)]


def test_just_so_many_calls_run_before_they_are_asked_for():
    called, third = [], threading.Event()

    def call(item):
        called.append(item)
        if len(called) == 3:
            third.set()
        return item

    results = in_order(call, range(9), 2)
    assert next(results) == 0
    assert third.wait(10), "two more are called while the first is in use"
    assert sorted(called) == [0, 1, 2]


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_failure_comes_at_its_place(ahead):
    results = in_order(lambda item: 6 // item, [3, 2, 0, 1], ahead)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """5,000 cells, three blocks."""
    anndata = pytest.importorskip("anndata")
    from scgpt_ray.atlas.soma_file import write_soma

    counts = scipy.sparse.random(5000, 40, 0.2, "csr", np.float32, np.random.default_rng(0))
    adata = anndata.AnnData(counts, obs=pd.DataFrame({"n": np.arange(5000)}, index=[f"c{i}" for i in range(5000)]))
    path = tmp_path_factory.mktemp("ahead") / "atlas"
    write_soma(path, adata)
    return path


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("chosen", ["n >= 0", "n < 40 or n > 4990"])
def test_reading_ahead_gives_the_same_blocks(experiment, monkeypatch, chosen, ahead):
    from scgpt_ray.atlas import soma
    from scgpt_ray.atlas.plan import cut
    from scgpt_ray.atlas.source import locate
    from scgpt_ray.config import CellSettings

    monkeypatch.setattr(soma, "_BLOCKS_AHEAD", ahead)
    genes = np.arange(40, dtype=np.int32)[::-1].copy()
    read = {}
    for uri in (str(experiment), f"file://{experiment}"):  # a place with a scheme is read ahead
        source = locate(uri, CellSettings(obs_filter=chosen))
        [partition] = cut(source.joinids(), 5000)
        read[uri] = list(source.read(partition, genes))
    plain, early = read.values()
    assert len(plain) == len(early) > 1
    assert all(ours.equals(theirs) for ours, theirs in zip(early, plain, strict=True))
