"""Requests of a reader to an object store, through a proxy that holds them back."""

import time

import numpy as np
import pytest

from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.soma_file import CENSUS_LAYOUT, write_soma
from scgpt_ray.atlas.source import locate
from scgpt_ray.benchmark.latency import served
from scgpt_ray.benchmark.read import synthetic_atlas
from scgpt_ray.benchmark.reader_processes import N_GENES
from scgpt_ray.config import CellSettings
from scgpt_ray.object_store import ObjectStore, using


@pytest.mark.slow
def test_files_of_an_atlas_are_requested_together(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "id")
    write_soma(tmp_path / "atlas", synthetic_atlas(np.full(2048, 800)), layout=CENSUS_LAYOUT)
    genes = np.arange(N_GENES, dtype=np.int32)
    with served(tmp_path / "atlas") as (proxy, uri), using(ObjectStore.of({"endpoint": proxy.url})):
        source = locate(uri, CellSettings())
        (partition,) = cut(source.joinids(), 2048)
        list(source.read(partition, genes))
        before, proxy.latency = proxy.requests, 2.0
        started = time.monotonic()
        (cells,) = source.read(partition, genes)
        seconds = time.monotonic() - started
    assert len(cells) == 2048
    assert proxy.requests - before == 3  # rows, columns and counts of X; obs is small enough to be in memory
    assert 4 <= seconds < 6  # the counts after the two coordinates
