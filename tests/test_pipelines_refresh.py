"""refresh: what is carried over, what is computed, and what is said about it."""

import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from anndata import concat

import scgpt_ray
from scgpt_ray.errors import InputError, ReferenceSetError
from scgpt_ray.network.checkpoint import random_checkpoint
from scgpt_ray.parts.changes import identity_columns
from scgpt_ray.parts.earlier import TABLE, EarlierVectors
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.pipelines import partition_steps
from scgpt_ray.records import ChangeCounts, Changes, Manifest
from scgpt_ray.schema import CONTENT, EMBEDDING, JOINID, OBS_ID
from scgpt_ray.storage import Folder


@pytest.fixture(scope="module")
def grown(blood, tmp_path_factory):
    """(before, after): cells in another order, ten gone, eight new, three with other counts, all labels renamed."""
    before = blood[:200].copy()
    before.obs["dataset_id"] = np.where(np.arange(200) < 150, "one", "two")
    before.obs["observation_joinid"] = [f"joinid-{number}" for number in range(200)]
    new = blood[200:208].copy()
    new.obs["dataset_id"], new.obs["observation_joinid"] = "three", [f"joinid-{number}" for number in range(8)]
    after = concat([new, before[:189:-1], before[179::-1]])
    after.var = before.var
    counts = after.X.toarray()
    counts[after.obs_names.get_indexer(["cell-190", "cell-010", "cell-011"]), :20] = 9
    after.X = sp.csr_matrix(counts)
    after.obs["cell_type"] = "renamed " + after.obs["cell_type"].astype(str)
    return before, after


@pytest.fixture(scope="module")
def embedded(grown, checkpoint, tmp_path_factory):
    """(atlas, output): the earlier embeddings."""
    folder = tmp_path_factory.mktemp("earlier")
    grown[0].write_h5ad(folder / "atlas.h5ad")
    scgpt_ray.embed(
        executor="serial",
        atlas=str(folder / "atlas.h5ad"),
        checkpoint=str(checkpoint),
        output=str(folder / "out"),
        obs_columns=["cell_type", "dataset_id", "observation_joinid"],
        cells_per_partition=64,
    )
    return folder / "atlas.h5ad", folder / "out"


@pytest.fixture
def computed(monkeypatch):
    """Names of the cells that go through the network."""
    names = []
    embed = partition_steps.EmbedPartition.__call__

    def watched(self, tokens):
        names.extend(tokens[OBS_ID].to_pylist())
        return embed(self, tokens)

    monkeypatch.setattr(partition_steps.EmbedPartition, "__call__", watched)
    return names


def cells(output):
    table = read_embeddings(Folder.at(output))
    return {row[OBS_ID]: row for row in table.to_pylist()}


def test_only_new_and_changed_cells_are_computed(grown, embedded, computed, checkpoint, tmp_path):
    grown[1].write_h5ad(tmp_path / "after.h5ad")
    after, anew = str(tmp_path / "after.h5ad"), str(tmp_path / "anew")
    common = {"executor": "serial", "cells_per_partition": 50}
    options = {**common, "embeddings": str(embedded[1]), "atlas": after}
    refreshed = scgpt_ray.refresh(output=str(tmp_path / "out"), **options)
    changed = ["cell-190", "cell-010", "cell-011"]
    assert sorted(computed) == sorted([*changed, *(f"cell-{number}" for number in range(200, 208))])
    found = Changes.read(Folder.at(tmp_path / "out"))
    assert found.identified_by == ("dataset_id", "observation_joinid")
    assert found.datasets == {
        "one": ChangeCounts(added=0, carried=148, changed=2, removed=0),
        "three": ChangeCounts(added=8, carried=0, changed=0, removed=0),
        "two": ChangeCounts(added=0, carried=39, changed=1, removed=10),
    }
    assert refreshed.to_dict() == {
        "refresh": "refreshed", "fingerprint": found.later, "n_quarantined": 0,
        "added": 8, "carried": 187, "changed": 3, "removed": 10,
    }  # fmt: skip
    assert not (tmp_path / "out" / TABLE).exists()
    assert scgpt_ray.validate(embeddings=str(tmp_path / "out")) == []
    # As if embedded anew, but carried vectors are those of before to the bit.
    columns = ["cell_type", "dataset_id", "observation_joinid"]
    scgpt_ray.embed(atlas=after, checkpoint=str(checkpoint), output=anew, obs_columns=columns, **common)
    ours, theirs, before = cells(tmp_path / "out"), cells(anew), cells(embedded[1])
    assert ours.keys() == theirs.keys()
    for name, row in ours.items():
        vector, expected = row.pop(EMBEDDING), theirs[name].pop(EMBEDDING)
        assert row == theirs[name]
        assert (vector is None) == (expected is None) == (name in ("cell-005", "cell-077"))
        if vector is not None:
            np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-6)
        if name in before and name not in changed:
            assert vector == before[name][EMBEDDING]


def test_it_is_finished_after_an_interruption_and_then_left_alone(grown, embedded, computed, tmp_path):
    grown[1].write_h5ad(tmp_path / "after.h5ad")
    options = {"executor": "serial", "embeddings": str(embedded[1]), "atlas": str(tmp_path / "after.h5ad")}
    options |= {"output": str(tmp_path / "out"), "cells_per_partition": 50}
    whole = scgpt_ray.refresh(**options)
    for name in ("manifest.json", "changes.json", "parts/part-00001.parquet"):
        (tmp_path / "out" / name).unlink()
    computed.clear()
    assert scgpt_ray.refresh(**options).to_dict() == whole.to_dict()
    assert len(computed) < 11
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert scgpt_ray.refresh(**options).to_dict() == whole.to_dict()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == files


def test_an_atlas_that_was_not_written_since_needs_no_folder(embedded, computed, tmp_path):
    refreshed = scgpt_ray.refresh(executor="serial", embeddings=str(embedded[1]), output=str(tmp_path / "out"))
    assert (refreshed.to_dict(), computed) == ({"refresh": "nothing_new"}, [])
    assert not (tmp_path / "out").exists()


def test_cells_in_another_file_are_nothing_new(grown, embedded, computed, tmp_path):
    grown[0].write_h5ad(tmp_path / "moved.h5ad")
    refreshed = scgpt_ray.refresh(
        executor="serial", embeddings=str(embedded[1]), atlas=str(tmp_path / "moved.h5ad"), output=str(tmp_path / "out")
    )
    assert (refreshed.to_dict()["refresh"], refreshed.changes.total("carried"), computed) == ("nothing_new", 200, [])


def test_full_refresh_computes_all(embedded, computed, tmp_path):
    refreshed = scgpt_ray.refresh(
        executor="serial", embeddings=str(embedded[1]), output=str(tmp_path / "out"), full_refresh=True
    )
    assert (refreshed.changes.total("carried"), len(computed)) == (200, 200)


@pytest.mark.parametrize(
    ("one", "other", "columns"),
    [
        ({JOINID, OBS_ID, "dataset_id", "observation_joinid"}, {"dataset_id", "observation_joinid"},
         ("dataset_id", "observation_joinid")),
        ({JOINID, OBS_ID, "dataset_id", "observation_joinid"}, {JOINID, OBS_ID, "dataset_id"}, (OBS_ID,)),
        ({JOINID, OBS_ID}, {JOINID}, (JOINID,)),
    ],
)  # fmt: skip
def test_cells_are_identified_by_what_both_carry(one, other, columns):
    assert identity_columns(one, other) == columns


def test_without_data_sets_cells_are_identified_by_their_names(blood, checkpoint, tmp_path):
    options = {"executor": "serial", "checkpoint": str(checkpoint)}
    blood[:60].copy().write_h5ad(tmp_path / "before.h5ad")
    blood[59:9:-1].copy().write_h5ad(tmp_path / "after.h5ad")
    scgpt_ray.embed(atlas=str(tmp_path / "before.h5ad"), output=str(tmp_path / "before"), **options)
    refreshed = scgpt_ray.refresh(
        executor="serial", embeddings=str(tmp_path / "before"), atlas=str(tmp_path / "after.h5ad"),
        output=str(tmp_path / "after"),
    )  # fmt: skip
    assert refreshed.changes.identified_by == (OBS_ID,)
    assert refreshed.changes.datasets == {"all cells": ChangeCounts(added=0, carried=50, changed=0, removed=10)}


def test_other_weights_are_refused(embedded, tmp_path):
    genes = [f"GENE{number}" for number in range(60)]
    random_checkpoint(tmp_path / "other", genes, embsize=32, nheads=2, d_hid=32, nlayers=2, seed=1)
    options = {"executor": "serial", "embeddings": str(embedded[1]), "output": str(tmp_path / "out")}
    with pytest.raises(ReferenceSetError, match=r"differ in the model \(weights"):
        scgpt_ray.refresh(checkpoint=str(tmp_path / "other"), **options)
    assert not (tmp_path / "out").exists()


def test_embeddings_without_digests_are_refused(make_embeddings, tmp_path):
    earlier = make_embeddings(tmp_path / "earlier", n_cells=20, cells_per_part=10)
    with pytest.raises(ReferenceSetError, match="have no column content_digest"):
        scgpt_ray.refresh(executor="serial", embeddings=earlier.uri, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_earlier_embeddings_that_change_meanwhile_are_an_error(grown, embedded, tmp_path):
    """Digests of the rows are compared again when vectors are copied."""
    source = Folder.at(embedded[1])
    earlier = EarlierVectors.of(source, Manifest.read(source), Folder.at(tmp_path))
    earlier.write_table()
    table = np.load(tmp_path / TABLE)
    assert (np.diff(table[0]) > 0).all()
    table[1] ^= 1  # neighbouring rows
    np.save(tmp_path / TABLE, table)
    content = pq.read_table(embedded[1] / "parts")[CONTENT].to_numpy()
    with pytest.raises(ReferenceSetError, match=r"part-0000\d.parquet has changed since this run started"):
        earlier.vectors(content)


def test_a_soma_atlas_that_grew(grown, blood, checkpoint, make_soma, tmp_path, caplog):
    """`embed` says that there is more, `refresh` embeds it, and the index gets it without training."""
    make_soma(blood[:200].copy(), tmp_path / "atlas")
    options = {"executor": "serial", "checkpoint": str(checkpoint), "atlas": str(tmp_path / "atlas")}
    options |= {"output": str(tmp_path / "out"), "obs_columns": ["cell_type"]}
    scgpt_ray.embed(**options)
    scgpt_ray.build_index(
        executor="serial", embeddings=str(tmp_path / "out"), output=str(tmp_path / "index"), factory="IVF4,SQ8"
    )
    with caplog.at_level(logging.WARNING):
        assert scgpt_ray.embed(**options).n_cells == 200
    assert "refresh" not in caplog.text
    make_soma(blood[200:].copy(), tmp_path / "atlas")
    with caplog.at_level(logging.WARNING):
        assert scgpt_ray.embed(**options).n_cells == 200
    assert f"scgpt-ray refresh --embeddings {tmp_path / 'out'} --output NEW embeds what is new" in caplog.text
    refreshed = scgpt_ray.refresh(
        executor="serial", embeddings=str(tmp_path / "out"), output=str(tmp_path / "new"),
        index=str(tmp_path / "index"), index_output=str(tmp_path / "new-index"),
    )  # fmt: skip
    assert refreshed.changes.datasets == {"all cells": ChangeCounts(added=60, carried=200, changed=0, removed=0)}
    for name in ("template.faiss", "centre.npy"):
        assert (tmp_path / "new-index" / name).read_bytes() == (tmp_path / "index" / name).read_bytes()
    request = json.loads((tmp_path / "new-index" / "index.json").read_text())["request"]
    assert request["template"]
    assert (refreshed.index.n_cells, refreshed.index.factory) == (258, "IVF4,SQ8")
    assert scgpt_ray.validate(index=str(tmp_path / "new-index")) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output": "earlier", "embeddings": "earlier"}, InputError, "another folder than the input"),
        ({"index_output": "some"}, InputError, "--index-output needs --index"),
        ({"embeddings": "nothing"}, ReferenceSetError, "has no manifest.json"),
    ],
)
def test_what_is_refused(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        scgpt_ray.refresh(**{"embeddings": "earlier", "output": "out", **options})
    assert list(tmp_path.iterdir()) == []
