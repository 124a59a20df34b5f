"""Processes that read: what they are told to, and how their memory grows."""

import numpy as np
import pytest

from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.soma_file import CENSUS_LAYOUT, write_soma
from scgpt_ray.atlas.source import locate
from scgpt_ray.benchmark.measurement import peak_bytes
from scgpt_ray.benchmark.read import synthetic_atlas
from scgpt_ray.benchmark.reader_processes import read_at_once, readers
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import WorkerError


def write(folder, n_cells, n_genes):
    adata = synthetic_atlas(np.full(n_cells, n_genes))
    adata.write_h5ad(folder / "atlas.h5ad")
    write_soma(folder / "atlas", adata, layout=CENSUS_LAYOUT)
    return [locate(str(folder / name), CellSettings()) for name in ("atlas", "atlas.h5ad")]


def test_a_process_that_fails_is_an_error(tmp_path):
    _, source = write(tmp_path, 40, 10)
    partitions = cut(source.joinids(), 20)
    with readers(2) as processes:
        assert all(peak > 50e6 for peak in read_at_once(processes, source, [partitions[:1], partitions[1:]]))
        (tmp_path / "atlas.h5ad").unlink()
        with pytest.raises(WorkerError, match="does not exist on this machine"):
            read_at_once(processes, source, [partitions, ()])


def test_memory_of_a_child_is_its_own(tmp_path):
    ballast = np.ones(500_000_000, np.uint8)
    _, source = write(tmp_path, 40, 10)
    with readers(1) as processes:
        [peak] = read_at_once(processes, source, [cut(source.joinids(), 40)])
    assert peak < ballast.nbytes < peak_bytes()


@pytest.mark.slow
def test_memory_grows_with_a_partition_by_its_tokens_alone(tmp_path):
    n_cells, n_genes = 16_384, 400
    for source in write(tmp_path, n_cells, n_genes):
        peak = {}
        for size in (4096, n_cells):
            with readers(1) as processes:
                # Twice, for the heap's sake.
                [[_], [peak[size]]] = [read_at_once(processes, source, [cut(source.joinids(), size)]) for _ in range(2)]
        added_cells = n_cells - 4096
        tokens, counts = 3 * n_genes * added_cells, 8 * n_genes * added_cells
        assert peak[n_cells] - peak[4096] < tokens + counts / 2
        assert peak[n_cells] < 0.6e9
