"""An index that is brought up to date against one that is built anew of the same embeddings."""

import json
from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp

import scgpt_ray
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.index.card import CARD
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.pipelines import index_update
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.pipelines.stratified_sample import count_cells, draw_cells
from scgpt_ray.records import IndexDescription
from scgpt_ray.schema import EMBEDDING, JOINID
from scgpt_ray.storage import Folder

REMOVED, CHANGED, RENAMED, ADDED = [3, 60, 61, 199], [0, 70, 150], [10, 151], range(200, 230)
"""Rows of the atlas, which are soma_joinids."""


@pytest.fixture(scope="module")
def nights(blood, checkpoint, tmp_path_factory):
    """(embed, grow): the first embeddings, made once; grow(night) writes the atlas of a night and returns its path."""
    place = tmp_path_factory.mktemp("nights")

    @cache
    def grow(night):
        cells = blood[: len(blood) if night == 2 else 230 if night == 1 else 200].copy()
        cells.obs["split"] = "used"
        if night:
            cells.obs.iloc[REMOVED, cells.obs.columns.get_loc("split")] = "left"
            counts = cells.X.toarray()
            counts[CHANGED, :20] = 9
            cells.X = sp.csr_matrix(counts)
            kinds = cells.obs["cell_type"].astype(str).to_numpy()
            kinds[RENAMED] = "renamed"
            cells.obs["cell_type"] = kinds
        if night == 2:  # what was changed is as it was, a removed cell is back, and another one is gone
            cells.X = blood.X.copy()
            cells.obs.iloc[20, cells.obs.columns.get_loc("split")] = "left"
            cells.obs.iloc[REMOVED[0], cells.obs.columns.get_loc("split")] = "used"
        path = place / f"night-{night}.h5ad"
        cells.write_h5ad(path)
        return str(path)

    scgpt_ray.embed(
        executor="serial", atlas=grow(0), checkpoint=str(checkpoint), output=str(place / "e0"),
        obs_columns=["cell_type", "donor"], obs_filter="split == 'used'", cells_per_partition=64,
    )  # fmt: skip
    return place / "e0", grow


def night(embeddings, atlas, output, index):
    options = {"executor": "serial", "cells_per_partition": 64, "embeddings": str(embeddings), "atlas": atlas}
    return scgpt_ray.refresh(output=str(output), index=str(index), **options)


def build(embeddings, output, factory, **options):
    return scgpt_ray.build_index(
        executor="serial", embeddings=str(embeddings), output=str(output), factory=factory, shards=2, **options
    )


def require_same(updated, anew, embeddings):
    """The same neighbours, labels, counts and samples, and nothing to complain of."""
    ours, theirs = (Reference.at(str(place)).on(SerialExecutor()) for place in (updated, anew))
    assert ours.index.n_cells == theirs.index.n_cells
    table = read_embeddings(Folder.at(embeddings))
    queries = np.stack(table[EMBEDDING].drop_null().to_numpy())
    for condition in (None, "cell_type == 'B'"):
        assert ours.cell_counts("cell_type", condition) == theirs.cell_counts("cell_type", condition)
        counted = [count_cells(each, ["cell_type", "donor"], condition).sort_by("cell_type") for each in (ours, theirs)]
        assert sorted(map(str, counted[0].to_pylist())) == sorted(map(str, counted[1].to_pylist()))
    for k in (1, 10, 300):
        for search in ("neighbors", "exact"):
            found, expected = getattr(ours, search)(queries, k), getattr(theirs, search)(queries, k)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    ids = expected[0]
    labels = [each.labels(ids, ["cell_type", "donor"]).sort_by(JOINID).to_pylist() for each in (ours, theirs)]
    assert labels[0] == labels[1]
    everything = [each.sample(1000, 0, ["cell_type"]) for each in (ours, theirs)]
    assert sorted(everything[0][0]) == sorted(everything[1][0])
    drawn = draw_cells(ours, ["cell_type"], {"B": 1000, "renamed": 5}, None, 0)[JOINID].to_pylist()
    assert drawn == draw_cells(theirs, ["cell_type"], {"B": 1000, "renamed": 5}, None, 0)[JOINID].to_pylist()
    assert scgpt_ray.validate(index=str(updated)) == []
    assert f"{ours.index.n_cells:,} cells" in (updated / CARD).read_text()
    assert ours.index.recall_at_10 == theirs.index.recall_at_10 == 1.0


def test_it_equals_an_index_without_the_cells(nights, tmp_path):
    first, grow = nights
    before = build(first, tmp_path / "index", "Flat")
    shards = {name: (tmp_path / "index" / name).read_bytes() for shard in before.shards for name in shard.files}
    refreshed = night(first, grow(1), tmp_path / "e1", tmp_path / "index")
    build(tmp_path / "e1", tmp_path / "anew", "Flat")
    assert {name: (tmp_path / "index" / name).read_bytes() for name in shards} == shards, "they are not written again"
    gone = len(REMOVED) + len(CHANGED) + len(RENAMED)
    assert sum(shard.n_removed for shard in refreshed.index.shards) == gone
    assert sum(shard.n_cells for shard in refreshed.index.shards[2:]) == len(CHANGED) + len(RENAMED) + len(ADDED)
    require_same(tmp_path / "index", tmp_path / "anew", tmp_path / "e1")
    # A second night: what had changed is as it was first, one of the removed cells is back, and another one is gone.
    night(tmp_path / "e1", grow(2), tmp_path / "e2", tmp_path / "index")
    build(tmp_path / "e2", tmp_path / "anew-2", "Flat")
    require_same(tmp_path / "index", tmp_path / "anew-2", tmp_path / "e2")


@pytest.mark.parametrize("worn_by", ["cells that are gone", pytest.param("shards", marks=pytest.mark.slow)])
def test_a_worn_index_gets_new_shards_of_all_cells(worn_by, nights, blood, tmp_path, monkeypatch, caplog):
    first, grow = nights
    build(first, tmp_path / "index", "Flat")
    if worn_by == "shards":
        monkeypatch.setattr(index_update, "_MOST_ADDED", 1)
        atlas = grow(1)
    else:
        atlas = str(tmp_path / "fewer.h5ad")
        fewer = blood[50:210].copy()
        fewer.obs["split"] = "used"
        fewer.write_h5ad(atlas)
    before = IndexDescription.read(Folder.at(tmp_path / "index"))
    with caplog.at_level("INFO"):
        index = night(first, atlas, tmp_path / "e1", tmp_path / "index").index
    assert [shard.number for shard in index.shards] == [2]
    assert sum(shard.n_removed for shard in index.shards) == 0
    assert "1 new shards hold all cells; scgpt-ray prune " in caplog.text
    build(tmp_path / "e1", tmp_path / "anew", "Flat")
    require_same(tmp_path / "index", tmp_path / "anew", tmp_path / "e1")
    removed = scgpt_ray.prune(folder=str(tmp_path / "index")).files
    assert {*removed} > {name for shard in before.shards for name in shard.files}
    assert not list((tmp_path / "index").glob("removed-*"))
    night(tmp_path / "e1", grow(2), tmp_path / "e2", tmp_path / "index")
    build(tmp_path / "e2", tmp_path / "anew-2", "Flat")
    require_same(tmp_path / "index", tmp_path / "anew-2", tmp_path / "e2")


@pytest.mark.slow
def test_an_index_with_codes_is_searched_without_the_cells(nights, tmp_path):
    first, grow = nights
    build(first, tmp_path / "index", "IVF4,SQ8", target_recall=1.0)
    night(first, grow(1), tmp_path / "e1", tmp_path / "index")
    updated = Reference.at(str(tmp_path / "index")).on(SerialExecutor())
    build(tmp_path / "e1", tmp_path / "anew", "Flat")
    queries = np.stack(read_embeddings(Folder.at(tmp_path / "e1"))[EMBEDDING].drop_null().to_numpy())
    found, _ = updated.neighbors(queries, 300)
    assert set(found.ravel()) == {
        -1,
        *Reference.at(str(tmp_path / "anew")).on(SerialExecutor()).exact(queries, 300)[0].ravel(),
    }
    assert scgpt_ray.validate(index=str(tmp_path / "index")) == []


@pytest.mark.slow
def test_readers_find_the_earlier_index_until_it_is_finished(nights, tmp_path, monkeypatch):
    first, grow = nights
    build(first, tmp_path / "index", "Flat")
    description = (tmp_path / "index" / IndexDescription.file).read_bytes()

    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(index_update, "finish", fail)
        with pytest.raises(OSError, match="the disk is full"):
            night(first, grow(1), tmp_path / "e1", tmp_path / "index")
    assert (tmp_path / "index" / IndexDescription.file).read_bytes() == description
    assert scgpt_ray.validate(index=str(tmp_path / "index")) == []
    done = night(first, grow(1), tmp_path / "e1", tmp_path / "index")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("*.json")}
    assert night(first, grow(1), tmp_path / "e1", tmp_path / "index").index == done.index
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("*.json")} == files


@pytest.mark.slow
def test_damage_is_found(nights, tmp_path):
    first, grow = nights
    build(first, tmp_path / "index", "Flat")
    night(first, grow(1), tmp_path / "e1", tmp_path / "index")
    (path, *_) = sorted((tmp_path / "index").glob("removed-*.npy"))
    np.save(path, np.array([1, 2]))
    (problem,) = scgpt_ray.validate(index=str(tmp_path / "index"))
    assert problem.startswith(f"{path.name} lists other cells than ")
    path.unlink()
    (problem,) = scgpt_ray.validate(index=str(tmp_path / "index"))
    assert problem.startswith(f"{path.name} is missing")


def test_an_index_of_other_embeddings_is_refused(nights, tmp_path):
    first, grow = nights
    build(first, tmp_path / "index", "Flat")
    place = tmp_path / "index" / IndexDescription.file
    index = json.loads(place.read_text())
    index["fingerprint"]["cells"]["uri"] = "elsewhere"
    place.write_text(json.dumps(index))
    with pytest.raises(ReferenceSetError, match=r"is not an index of .*/e0 alone"):
        night(first, grow(1), tmp_path / "e1", tmp_path / "index")
    assert not (tmp_path / "e1").exists()
