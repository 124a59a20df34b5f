"""The snapshot of a request is the last write of what it reads."""

import time

import pyarrow as pa
import pytest
import tiledbsoma as soma

from scgpt_ray.atlas.soma_snapshot import last_write
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError
from scgpt_ray.object_store import ObjectStore


def snapshot(path):
    return locate(str(path), CellSettings()).identity()["snapshot"]


@pytest.fixture
def path(tmp_path, blood, make_soma):
    path = tmp_path / "an atlas with spaces"
    make_soma(blood[:30].copy(), path)
    time.sleep(0.01)
    return path


def test_asked_twice(path):
    before = time.time_ns() // 10**6
    first = snapshot(path)
    assert first < before
    time.sleep(0.01)
    assert snapshot(path) == first


def test_what_is_read_is_there_at_the_last_write(path):
    source = locate(str(path), CellSettings())
    assert len(source.joinids()) == 30
    assert source.var().index[0].startswith("ENSG")


def test_a_write_moves_it(path, blood, make_soma):
    first = snapshot(path)
    began = time.time_ns() // 10**6
    make_soma(blood[30:50].copy(), path)
    assert first < began <= snapshot(path) <= time.time_ns() // 10**6
    assert len(locate(str(path), CellSettings()).joinids()) == 50
    assert len(locate(str(path), CellSettings(snapshot=first)).joinids()) == 30


def test_a_write_to_what_is_not_read_does_not(path):
    with soma.Experiment.open(str(path), "w") as experiment:
        rna = experiment.ms["RNA"]
        rna.add_new_collection("obsm").add_new_sparse_ndarray("X_pca", type=pa.float32(), shape=(30, 2))
    time.sleep(0.01)
    first = snapshot(path)
    with soma.SparseNDArray.open(str(path / "ms/RNA/obsm/X_pca"), "w") as array:
        array.write(pa.table({"soma_dim_0": [0], "soma_dim_1": [0], "soma_data": pa.array([1.0], pa.float32())}))
    assert snapshot(path) == first


def test_a_deletion_moves_it(path):
    first = snapshot(path)
    with soma.Experiment.open(str(path), "d") as experiment:
        experiment.obs_axis_delete(value_filter="soma_joinid == 0")
    assert snapshot(path) > first
    assert len(locate(str(path), CellSettings()).joinids()) == 29


def test_consolidation_does_not(path, blood, make_soma):
    """Not even for a process that has opened the snapshot before, and knows the files that are gone."""
    make_soma(blood[30:50].copy(), path)
    before = locate(str(path), CellSettings())
    assert len(before.joinids()) == 50
    for name in ("obs", "ms/RNA/var", "ms/RNA/X/raw"):
        with soma.open(str(path / name), "w") as array:
            array._handle.consolidate_and_vacuum(["fragment_meta", "commits", "fragments", "array_meta"])
        assert len(list((path / name / "__fragments").iterdir())) == 1
    after = locate(str(path), CellSettings())
    assert after.identity() == before.identity()
    assert len(after.joinids()) == 50


def test_a_layer_that_joins_later_is_seen(path, tmp_path):
    place = tmp_path / "layer"
    soma.SparseNDArray.create(str(place), type=pa.float32(), shape=(30, 64)).close()
    time.sleep(0.01)
    with soma.Experiment.open(str(path), "w") as experiment, soma.SparseNDArray.open(str(place)) as layer:
        experiment.ms["RNA"].X.set("more", layer)
    assert locate(str(path), CellSettings(layer="more")).joinids().tolist() == list(range(30))


def test_metadata_that_is_written_later_is_seen(tmp_path, blood, make_soma):
    """tiledbsoma.io records there which column holds the names of the cells."""
    path = tmp_path / "atlas"
    make_soma(blood[:5].copy(), path)
    first = snapshot(path)
    time.sleep(0.01)
    with soma.DataFrame.open(str(path / "obs"), "w") as obs:
        obs.metadata["soma_dataframe_original_index_name"] = '"donor"'
    assert snapshot(path) > first


def test_what_cannot_be_listed(tmp_path):
    (tmp_path / "obs").mkdir()
    with pytest.raises(AtlasError, match=r"last written to is not known: no file names a time; .*--snapshot"):
        last_write([str(tmp_path)], [str(tmp_path / "obs")], ObjectStore())
    with pytest.raises(AtlasError, match="Unrecognized filesystem type in URI: tiledb"):
        last_write(["tiledb://a/b"], [], ObjectStore())


def test_a_write_that_was_stamped_ahead_of_this_clock(tmp_path):
    for folder, name in {"__commits": "__5_900_ab_22.wrt", "__schema": "__7_7_cd", "__meta": "__enumerations"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    assert last_write([], [str(tmp_path)], ObjectStore()) == 900
