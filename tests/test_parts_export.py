"""Embeddings as an .h5ad file that anndata and scanpy open."""

import os
import subprocess

import anndata
import h5py
import numpy as np
import pytest

from scgpt_ray.atlas.anndata_file import read_anndata
from scgpt_ray.atlas.embedding_h5ad import OBSM_KEY
from scgpt_ray.errors import OutputError, ReferenceSetError
from scgpt_ray.parts.checksums import line_of
from scgpt_ray.parts.export import export_h5ad, read_embeddings
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID
from scgpt_ray.storage import Folder


@pytest.fixture(scope="module")
def run(make_embeddings, tmp_path_factory):
    return make_embeddings(tmp_path_factory.mktemp("export") / "run", empty=(3, 9))


def test_all_parts_become_one_table(run):
    table = read_embeddings(run)
    assert table[JOINID].to_pylist() == list(range(10, 30))
    assert table["kind"].to_pylist() == [["B", "T", None][number % 3] for number in range(20)]
    assert table.schema.metadata is None


def test_the_file_holds_names_columns_and_vectors(run, tmp_path):
    file = tmp_path / "new" / "cells.h5ad"
    assert export_h5ad(run, str(file)) == 20
    cells = read_anndata(file)
    assert cells.shape == (20, 0)
    assert cells.obs_names.tolist() == [f"cell-{number}" for number in range(20)]
    assert cells.obs.columns.tolist() == ["kind", "age", "soma_joinid", "n_genes"]
    assert cells.obs["kind"].dtype == "category"
    assert cells.obs["kind"].isna().sum() == 6
    assert cells.obs["age"].tolist() == list(range(20))
    vectors = cells.obsm[OBSM_KEY]
    assert np.flatnonzero(np.isnan(vectors).any(axis=1)).tolist() == [3, 9]
    expected = read_embeddings(run)[EMBEDDING].to_pylist()
    for row, vector in enumerate(expected):
        if vector is not None:
            np.testing.assert_array_equal(vectors[row], np.float32(vector))
    assert sorted(path.name for path in file.parent.iterdir()) == ["cells.h5ad", "cells.h5ad.sha256"]
    subprocess.run(["sha256sum", "--check", "--strict", "cells.h5ad.sha256"], cwd=file.parent, check=True)


def test_half_precision(run, tmp_path):
    export_h5ad(run, str(tmp_path / "half.h5ad"), half=True)
    export_h5ad(run, str(tmp_path / "cells.h5ad"))
    half, single = (read_anndata(tmp_path / name).obsm[OBSM_KEY] for name in ("half.h5ad", "cells.h5ad"))
    np.testing.assert_array_equal(half, single.astype(np.float16))


def test_scanpy_works_on_it(run, tmp_path):
    import scanpy

    export_h5ad(run, str(tmp_path / "cells.h5ad"))
    cells = scanpy.read_h5ad(tmp_path / "cells.h5ad")
    cells = cells[cells.obs["n_genes"] > 0].copy()
    # The kernel of UMAP, the default, is compiled for ten seconds.
    scanpy.pp.neighbors(cells, use_rep=OBSM_KEY, n_neighbors=5, method="gauss")
    assert cells.obsp["connectivities"].shape == (18, 18)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_earlier_export_is_replaced(run, scheme, tmp_path):
    file = tmp_path / "cells.h5ad"
    export_h5ad(run, f"{scheme}{file}", half=True)
    for _ in range(2):
        export_h5ad(run, f"{scheme}{file}")
        assert read_anndata(file).obsm[OBSM_KEY].dtype == np.float32


@pytest.mark.parametrize("end", ["remove", "write"])
def test_what_an_interrupted_export_leaves_is_replaced(run, tmp_path, monkeypatch, end):
    """Of an earlier checksum and the new file, or of this and the new checksum, only the first step was taken."""
    file = tmp_path / "cells.h5ad"
    export_h5ad(run, str(file), half=True)
    remove = Folder.remove

    def interrupted(folder, name, *_content):
        if end == "remove":
            remove(folder, name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Folder, end, interrupted)
        export_h5ad(run, str(file))
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]
    assert read_anndata(file).obsm[OBSM_KEY].dtype == (np.float16 if end == "remove" else np.float32)
    export_h5ad(run, str(file))
    subprocess.run(["sha256sum", "--check", "--strict", "cells.h5ad.sha256"], cwd=tmp_path, check=True)


def own_cells(run, file):
    """With a checksum, as those that were downloaded have."""
    anndata.AnnData(np.ones((2, 3), np.float32)).write_h5ad(file)
    file.with_name("cells.h5ad.sha256").write_text(line_of(file, file.name))


def text(run, file):
    file.write_text("My cells.")
    file.with_name("cells.h5ad.sha256").write_text(line_of(file, file.name))


def annotated_by_anndata(run, file):
    export_h5ad(run, str(file))
    cells = anndata.read_h5ad(file)
    cells.obs["cluster"] = "1"
    cells.write_h5ad(file)
    file.with_name("cells.h5ad.sha256").write_text(line_of(file, file.name))


def annotated_in_place(run, file):
    export_h5ad(run, str(file))
    with h5py.File(file, "r+") as opened:
        opened["uns"]["clusters"] = [1, 2]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("made", [own_cells, text, annotated_by_anndata, annotated_in_place])
def test_no_other_file_is_replaced(run, made, scheme, tmp_path):
    made(run, tmp_path / "cells.h5ad")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        OutputError, match=r"cells.h5ad exists and is not an unchanged earlier export; expected a new file"
    ):
        export_h5ad(run, f"{scheme}{tmp_path}/cells.h5ad")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_relative_path_is_one_of_the_working_directory(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_h5ad(run, "cells.h5ad")
    assert (tmp_path / "cells.h5ad").is_file()


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file cannot be written"):
        export_h5ad(run, str(tmp_path / "file" / "cells.h5ad"))
    if os.geteuid():
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(OutputError, match=r"shut cannot be written"):
            export_h5ad(run, str(tmp_path / "shut" / "cells.h5ad"))


def test_a_folder_in_the_place_of_the_file(run, tmp_path):
    (tmp_path / "cells.h5ad").mkdir()
    with pytest.raises(OutputError, match=r"cells.h5ad is a folder; expected the name of a file"):
        export_h5ad(run, str(tmp_path / "cells.h5ad"))


def test_an_unfinished_run_is_refused(make_embeddings, tmp_path):
    run = make_embeddings(tmp_path / "run")
    run.remove(Manifest.file)
    with pytest.raises(ReferenceSetError, match=r"has no manifest.json"):
        export_h5ad(run, str(tmp_path / "cells.h5ad"))
    assert not Folder.at(tmp_path).has("cells.h5ad")
