"""The measurements of `map` and of bookkeeping, on little."""

import os

import pytest

from scgpt_ray.benchmark import bookkeeping, mapping
from scgpt_ray.benchmark.simulated_run import LABELS, write_run
from scgpt_ray.parts.manifest import committed_parts, prove_complete
from scgpt_ray.records import Plan
from scgpt_ray.storage import Folder


def test_a_simulated_run_is_a_finished_run(tmp_path):
    folder = Folder.at(tmp_path / "run")
    manifest = write_run(folder, 100, width=8, cells_per_part=32, seed=0)
    assert (manifest.n_cells, manifest.obs_columns, len(manifest.parts)) == (100, list(LABELS), 4)
    prove_complete(Plan.read(folder), committed_parts(folder, manifest.fingerprint))
    assert write_run(folder, 100, width=8, cells_per_part=32, seed=0) == manifest


@pytest.mark.slow
def test_a_killed_map_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, monkeypatch):
    (tmp_path / "umap.py").write_text("raise ImportError")  # as if it were not installed: it compiles for long
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    sizes = ["--reference", "2000", "--query", "6000", "--cells-per-part", "64", "--width", "16", "--factory", "Flat"]
    figures = mapping.measure(mapping.parse(["--place", str(tmp_path), *sizes, "--kills", "1"]))
    found = {figure.name: figure.value for figure in figures}
    assert found["parts unlike an undisturbed run"] == 0
    assert found["driver: private memory, most"] > 0
    # The comparison finds a part that differs.
    whole = tmp_path / "predictions-serial"
    first = next(whole.iterdir())
    first.write_bytes(b"")
    assert mapping.unlike(whole, tmp_path / "predictions-serial-killed") == 1


@pytest.mark.slow
def test_bookkeeping(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "id")
    sizes = ["--cells", "40000", "--parts", "30", "--served", "10", "--shards", "2"]
    found = {figure.name: figure.value for figure in bookkeeping.measure(bookkeeping.parse(sizes))}
    assert 2 <= found["parts listed and proved on S3, per part"] < 2.5
    assert 2 <= found["memory of a label of a cell"] < 3
