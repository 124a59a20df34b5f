"""nightly: one request for every night, and what it does after each kind of night."""

import pytest
import yaml

import scgpt_ray
from scgpt_ray.cli import DONE, GATE_FAILED, main
from scgpt_ray.errors import OutputError
from scgpt_ray.pipelines import nightly as nightly_module
from scgpt_ray.records import GateReport, IndexDescription
from scgpt_ray.storage import Folder
from tests.test_pipelines_quarantine import damage
from tests.tracked_runs import nested_runs


@pytest.fixture
def world(blood, checkpoint, make_soma, tmp_path):
    """(night, grow): night(**options) runs the same request; grow(first, last, times) appends cells to its atlas."""

    def grow(first, last, times=1):
        cells = blood[first:last].copy()
        cells.X = cells.X * times
        cells.obs["dataset_id"] = f"set-{first}"
        make_soma(cells, tmp_path / "atlas")

    def night(**options):
        asked = {"atlas": str(tmp_path / "atlas"), "checkpoint": str(checkpoint), "output": str(tmp_path / "out")}
        asked |= {"executor": "serial", "obs_columns": ["cell_type"], "cells_per_partition": 64, **options}
        return scgpt_ray.nightly(**asked).to_dict()

    grow(0, 120)
    return night, grow


def runs(place):
    return [path.name for path in sorted((place / "out").glob("run-*"))]


def holds(place):
    index = IndexDescription.read(Folder.at(place / "out" / "index"))
    return index.embeddings.rpartition("/")[2], index.n_cells


def test_nights(world, tmp_path):
    night, grow = world
    first = night()
    assert (first["refresh"], first["n_cells"], holds(tmp_path)) == ("embedded", 120, ("run-00001", 118))
    assert night()["refresh"] == "nothing_new"
    assert runs(tmp_path) == ["run-00001"]
    grow(120, 150)
    second = night()
    assert (second["refresh"], second["added"], second["carried"]) == ("refreshed", 30, 120)
    assert second["embeddings"] == str(tmp_path / "out" / "run-00002")
    assert holds(tmp_path) == ("run-00002", 148)
    grow(150, 160)
    assert night(keep=1)["carried"] == 150
    assert (runs(tmp_path), holds(tmp_path)) == (["run-00003"], ("run-00003", 158))
    assert scgpt_ray.validate(index=str(tmp_path / "out" / "index")) == []
    verbs = ["embed", "index", "index", "index", "refresh", "refresh"]
    assert nested_runs(tmp_path / "out" / "mlflow.db", "nightly") == verbs
    with pytest.raises(OutputError, match=r"run-00003 was made with other options: --max-length 64, there 1200; "):
        night(max_length=64)


def content(output):
    return {
        path.relative_to(output): path.read_bytes()
        for path in output.rglob("*")
        if path.suffix in (".parquet", ".faiss", ".npy")
    }


@pytest.mark.ray
@pytest.mark.slow
def test_nights_on_ray_have_the_bytes_of_those_of_one_process(local_ray, world, tmp_path):
    night, grow = world
    for executor in ("serial", "ray"):
        assert night(executor=executor, output=str(tmp_path / executor))["refresh"] == "embedded"
    grow(120, 150)
    for executor in ("serial", "ray"):
        assert night(executor=executor, output=str(tmp_path / executor))["added"] == 30
    serial = content(tmp_path / "serial")
    assert {path.parts[0] for path in serial} == {"run-00001", "run-00002", "index"}
    assert content(tmp_path / "ray") == serial


def test_cells_in_quarantine_are_tried_again_every_night(world, tmp_path):
    """Also if the atlas stays as it is: bytes that were damaged on the way to it can be mended without a write."""
    night, grow = world
    grow(120, 128)
    fragments = (tmp_path / "atlas" / "ms" / "RNA" / "X" / "raw" / "__fragments").iterdir()
    tiles = max(fragments, key=lambda fragment: fragment.name) / "a0.tdb"
    mend = damage(tiles, 0, tiles.stat().st_size)
    found = night()
    assert (found["refresh"], found["n_cells"], found["n_quarantined"]) == ("embedded", 120, 8)
    for _ in range(2):
        found = night()
        assert (found["refresh"], found["n_quarantined"], found["carried"]) == ("nothing_new", 8, 120)
        assert (runs(tmp_path), holds(tmp_path)) == (["run-00001", "run-00002"], ("run-00001", 118))
        assert found["embeddings"] == str(tmp_path / "out" / "run-00001")
    mend()
    found = night()
    assert (found["refresh"], found["n_quarantined"], found["added"], found["carried"]) == ("refreshed", 0, 8, 120)
    assert (runs(tmp_path), holds(tmp_path)) == (["run-00001", "run-00002"], ("run-00002", 126))
    assert scgpt_ray.validate(index=str(tmp_path / "out" / "index")) == []
    assert night()["refresh"] == "nothing_new"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["embed", "build_index", "refresh"])
def test_a_night_that_was_killed_is_finished_by_the_next(step, world, tmp_path, monkeypatch):
    """Also if the atlas has grown meanwhile: the run goes on with the cells that it began with."""
    night, grow = world
    if step == "refresh":
        night()
        grow(120, 150)
    done = getattr(nightly_module, step)

    def killed(*arguments):
        done(*arguments)
        if step == "embed":
            (tmp_path / "out" / "run-00001" / "manifest.json").unlink()
        if step == "refresh":
            (tmp_path / "out" / "run-00002" / "manifest.json").unlink()
            index = tmp_path / "out" / "index" / "index.json"
            index.write_bytes(before)
        raise OSError("killed")

    before = (tmp_path / "out" / "index" / "index.json").read_bytes() if step == "refresh" else b""
    with monkeypatch.context() as patch:
        patch.setattr(nightly_module, step, killed)
        with pytest.raises(OSError, match="killed"):
            night()
    grow(200, 210)
    following = night()
    if step == "build_index":  # which was finished: the index holds the run, and the atlas has grown since
        assert (following["refresh"], following["added"], following["carried"]) == ("refreshed", 10, 120)
    else:
        assert following["refresh"] == ("refreshed" if step == "refresh" else "embedded")
        assert holds(tmp_path) == (("run-00002", 148) if step == "refresh" else ("run-00001", 118))
        assert night()["added"] == 10


@pytest.mark.slow
def test_a_night_that_drifted_is_repeated_until_atlas_or_threshold_changes(blood, checkpoint, world, tmp_path):
    night, grow = world
    night()
    grow(120, 180, times=0)
    refused = {"gate": True, "verified_cells": 2}
    for _ in range(2):
        found = night(**refused)
        assert (found["refresh"], found["embeddings"]) == ("gate_failed", str(tmp_path / "out" / "run-00001"))
        assert (runs(tmp_path), holds(tmp_path)) == (["run-00001", "run-00002"], ("run-00001", 118))
    grow(180, 190)
    assert (night(**refused)["refresh"], runs(tmp_path)[-1]) == ("gate_failed", "run-00003")
    assert GateReport.read(Folder.at(tmp_path / "out" / "run-00003" / "gate")).failed
    (tmp_path / "lax.yaml").write_text(yaml.safe_dump({"empty_rise": None}))
    words = ["--atlas", tmp_path / "atlas", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--executor"]
    words += ["serial", "--obs-columns", "cell_type", "--gate", "--verified-cells", "2"]
    assert main(["nightly", *map(str, words)]) == GATE_FAILED
    assert main(["nightly", *map(str, words), "--thresholds", str(tmp_path / "lax.yaml")]) == DONE
    assert (runs(tmp_path), holds(tmp_path)) == (["run-00002", "run-00003"], ("run-00003", 128))
