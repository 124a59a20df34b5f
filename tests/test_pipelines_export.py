"""The verb `export`: formats, the length of SOMA arrays, and options that do not fit."""

import anndata
import pyarrow.parquet as pq
import pytest
import tiledbsoma as soma

from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings, ExportSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.pipelines.export import export
from scgpt_ray.records import Plan


@pytest.fixture
def run(make_embeddings, tmp_path):
    """Embeddings of 20 cells, 10 to 29."""
    return make_embeddings(tmp_path / "run")


def of_atlas(run, atlas, source):
    """State in the plan which atlas was embedded."""
    plan = Plan.read(run)
    fingerprint = Fingerprint(plan.fingerprint.model, {**source.identity(), "obs_columns": []})
    plan.replace(fingerprint=fingerprint, settings={"atlas": str(atlas)}).write(run)


def exported(run, output, **options):
    return export(ExportSettings.of({"embeddings": run.uri, "output": str(output), **options}))


def shape(output):
    with soma.open(str(output)) as array:
        return array.shape


def test_all_formats(run, tmp_path):
    assert exported(run, tmp_path / "cells.h5ad").n_cells == 20
    assert exported(run, tmp_path / "array", to="soma").n_cells == 19
    result = exported(run, tmp_path / "set", to="hf", half=True)
    assert (result.to_dict(), result.text()) == ({"n_cells": 20}, f"20 cells: {tmp_path / 'set'}")
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").n_obs == 20
    assert shape(tmp_path / "array") == (30, 8)
    assert pq.read_table(tmp_path / "set" / "data").num_rows == 20


def test_an_array_is_as_long_as_obs_of_the_atlas(run, blood, make_soma, tmp_path):
    atlas = make_soma(blood, tmp_path / "atlas")
    of_atlas(run, atlas, locate(atlas, CellSettings(obs_filter="cell_type == 'B'")))
    exported(run, tmp_path / "array", to="soma")
    assert shape(tmp_path / "array") == (260, 8)
    (tmp_path / "atlas").rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"number of rows of obs is not known: .*atlas.*; give the number to --obs"):
        exported(run, tmp_path / "new", to="soma")
    exported(run, tmp_path / "new", to="soma", obs_rows=31)
    assert shape(tmp_path / "new") == (31, 8)


def test_a_length_that_cannot_be(run, tmp_path):
    with pytest.raises(ConfigError, match=r"--obs-rows 29; expected 30 or more: the cell with soma_joinid 29 is emb"):
        exported(run, tmp_path / "array", to="soma", obs_rows=29)
    run.remove(Plan.file)
    with pytest.raises(ConfigError, match=r"plan.json is missing"):
        exported(run, tmp_path / "array", to="soma")
    exported(run, tmp_path / "array", to="soma", obs_rows=30)
    assert shape(tmp_path / "array") == (30, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "h5ad", "title": "Blood"}, "--title is for --to soma and hf"),
        ({"to": "h5ad", "license": "mit"}, "--license is for --to soma and hf"),
        ({"to": "hf", "obs_rows": 3}, "--obs-rows is for --to soma"),
        ({"to": "hf", "contact": ["a", "b", "c"]}, "--contact is for --to soma"),
        ({"to": "soma", "contact": ["a", "b"]}, "--contact needs three values"),
    ],
)
def test_options_of_another_format(options, message, run, tmp_path):
    with pytest.raises(ConfigError, match=message):
        exported(run, tmp_path / "output", **options)
