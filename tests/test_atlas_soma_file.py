"""A SOMA experiment written from memory is one that the locator reads."""

import numpy as np
import pytest

from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.soma_file import write_soma
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import OutputError
from scgpt_ray.schema import COUNT, GENE, OBS_ID


def settings(path, **options):
    return EmbedSettings(atlas=str(path), checkpoint="unused", output="unused", **options)


def test_every_count_is_read_back(blood, tmp_path):
    write_soma(tmp_path / "atlas", blood)
    source = locate(str(tmp_path / "atlas"), settings(tmp_path / "atlas", obs_columns=["cell_type"]))
    joinids = source.joinids()
    assert joinids.tolist() == list(range(260))
    var = source.var()
    assert var["feature_name"].tolist() == blood.var["feature_name"].tolist()
    # All genes as their own token, so that nothing is left out.
    [cells] = source.read(cut(joinids, 260)[0], np.arange(64, dtype=np.int32))
    assert cells[OBS_ID].to_pylist() == blood.obs_names.tolist()
    assert cells["cell_type"].to_pylist() == blood.obs["cell_type"].tolist()
    for row, (genes, counts) in enumerate(zip(cells[GENE].to_pylist(), cells[COUNT].to_pylist(), strict=True)):
        found = np.zeros(64, np.float32)
        found[genes] = counts
        np.testing.assert_array_equal(found, blood.X[row].toarray().ravel())


def test_measurement_and_layer_have_the_names_asked_for(blood, tmp_path):
    path = tmp_path / "atlas"
    write_soma(path, blood[:20].copy(), measurement="protein", layer="counts")
    source = locate(str(path), settings(path, measurement="protein", layer="counts"))
    assert len(source.joinids()) == 20


def test_an_experiment_that_is_there_stays(blood, tmp_path):
    path = tmp_path / "atlas"
    write_soma(path, blood[:20].copy())
    with pytest.raises(OutputError, match=r"atlas already exists; expected a new folder"):
        write_soma(path, blood[:10].copy())
    assert len(locate(str(path), settings(path)).joinids()) == 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["atlas"]


def test_the_cells_given_are_not_changed(blood, tmp_path):
    cells = blood[:5].copy()
    before = cells.copy()
    write_soma(tmp_path / "atlas", cells)
    assert cells.obs.equals(before.obs)
    assert cells.obs.columns.tolist() == before.obs.columns.tolist()
    assert cells.obs.index.name == before.obs.index.name


def test_a_writer_that_dies_leaves_nothing_in_the_place(blood, tmp_path):
    broken = blood[:5].copy()
    broken.obs["mixed"] = [1, "a", None, b"x", object()]
    with pytest.raises((TypeError, ValueError)):
        write_soma(tmp_path / "atlas", broken)
    assert not (tmp_path / "atlas").exists()
