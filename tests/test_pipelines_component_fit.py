"""Principal components: fitted as scikit-learn does, and taken through every verb as a network is."""

import json

import anndata
import numpy as np
import pytest
from sklearn.decomposition import PCA

import scgpt_ray
from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.evaluation.components import log1p_cp10k
from scgpt_ray.network.cell_encoder import read_encoder
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.pipelines import map_report
from scgpt_ray.records import IndexDescription, Manifest, Plan
from scgpt_ray.schema import EMBEDDING, dense_vectors
from scgpt_ray.storage import Folder
from tests.forked import Forked

SERIAL = ("--executor", "serial")
N = 6


def embedding(atlas, output, *options, checkpoint=f"pca:{N}"):
    words = ["embed", "--atlas", str(atlas), "--checkpoint", checkpoint, "--output", str(output), *SERIAL, *options]
    return [*words, "--obs-columns", "cell_type", "--cells-per-partition", "60"]


def content(run):
    return {path.name: path.read_bytes() for path in (run / "parts").iterdir()}


@pytest.fixture(scope="module")
def run(blood_file, tmp_path_factory):
    """`blood`, embedded by six components."""
    output = tmp_path_factory.mktemp("components") / "run"
    assert main(embedding(blood_file, output)) == DONE
    return output


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def agree(vectors, components, genes, cells, tolerance):
    """Fitted components and stored vectors against a dense decomposition in float64, up to the signs of components."""
    logs = log1p_cp10k(cells.X.tocsr()).astype(np.float64).toarray()
    has_counts = logs.any(axis=1)
    place = {name: number for number, name in enumerate(genes)}
    names = {token: name for name, token in components.vocabulary.tokens.items()}
    logs = logs[has_counts][:, [place[names[token]] for token in components.token_H]]
    expected = PCA(components.width, svd_solver="full").fit(logs)
    signs = np.sign((components.components_CH * expected.components_).sum(axis=1))
    np.testing.assert_allclose(components.components_CH.T * signs, expected.components_.T, rtol=0, atol=tolerance)
    assert (
        components.components_CH[range(components.width), np.abs(components.components_CH).argmax(axis=1)] > 0
    ).all()
    assert np.array_equal(np.isfinite(vectors).all(axis=1), has_counts)
    np.testing.assert_allclose(vectors[has_counts] * signs, unit(expected.transform(logs)), rtol=0, atol=tolerance)


def test_components_are_those_of_scikit_learn(blood, run):
    table = read_embeddings(Folder.at(run))
    agree(dense_vectors(table[EMBEDDING]), read_encoder(run / "checkpoint"), blood.var["feature_name"], blood, 1e-5)
    assert Manifest.read(Folder.at(run)).n_empty == 2
    about = json.loads((run / "checkpoint" / "args.json").read_text())
    assert (about["cells"], about["genes"], about["components"]) == (258, 64, N)


def test_every_verb_takes_them(blood, run, tmp_path, capsys, monkeypatch):
    """Index, mapping of a query with other genes, verify, validate, refresh, export; nothing is fitted again."""
    monkeypatch.setattr(map_report, "drawn_cells", lambda *_: "No cells are drawn here.")
    index, mapped, query = tmp_path / "index", tmp_path / "mapped", tmp_path / "query.h5ad"
    other = anndata.AnnData(blood.X[:90, ::-1][:, :50].copy(), obs=blood.obs[:90], var=blood.var[::-1][:50].copy())
    other.var["feature_name"] = [*other.var["feature_name"][:-1], "unknown"]
    other.write_h5ad(query)
    assert (
        main(["index", "--embeddings", str(run), "--output", str(index), *SERIAL, "--label-columns", "cell_type"])
        == DONE
    )
    assert IndexDescription.read(Folder.at(index)).checkpoint == str(run / "checkpoint")
    words = ["map", "--query", str(query), "--index", str(index), "--output", str(mapped), *SERIAL]
    assert main([*words, "--truth-column", "cell_type", "--k", "5"]) == DONE
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["scores"]["accuracy"] > 0.9
    reference, queried = (Plan.read(Folder.at(each)).fingerprint.model for each in (run, mapped / "embeddings"))
    assert reference == queried
    assert scgpt_ray.verify(embeddings=str(run), sample=80).n_wrong == 0
    assert scgpt_ray.validate(embeddings=str(run)) == scgpt_ray.validate(index=str(index)) == []
    copied = np.arange(260)
    copied[7] = 8
    anndata.AnnData(blood.X[copied], blood.obs, blood.var).write_h5ad(tmp_path / "changed.h5ad")
    again = tmp_path / "again"
    refreshed = scgpt_ray.refresh(
        embeddings=str(run),
        atlas=str(tmp_path / "changed.h5ad"),
        checkpoint="pca",
        output=str(again),
        executor="serial",
    ).to_dict()
    assert (refreshed["carried"], refreshed["changed"]) == (259, 1)
    assert Plan.read(Folder.at(again)).settings["checkpoint"] == str(again / "checkpoint")
    old, new = (dense_vectors(read_embeddings(Folder.at(each))[EMBEDDING]) for each in (run, again))
    assert np.array_equal(np.delete(old, 7, 0), np.delete(new, 7, 0), equal_nan=True)
    assert np.array_equal(new[7], old[8])
    assert main(["export", "--embeddings", str(run), "--output", str(tmp_path / "cells.h5ad")]) == DONE


def test_a_run_is_finished_with_the_components_that_it_began_with(blood_file, run, tmp_path, capsys):
    before, file = content(run), run / "checkpoint" / "pca.safetensors"
    written = file.stat().st_mtime_ns
    (run / "manifest.json").unlink()
    (run / "parts" / "part-00002.parquet").unlink()
    assert main(embedding(blood_file, run, checkpoint="pca:7")) == BAD_INPUT
    assert "holds a run with 6 components, not 7" in capsys.readouterr().err
    assert main(embedding(blood_file, run)) == DONE
    assert content(run) == before
    assert file.stat().st_mtime_ns == written
    assert main(embedding(blood_file, tmp_path / "shared", checkpoint=str(run / "checkpoint"))) == DONE
    assert (tmp_path / "shared" / "checkpoint" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "option",
    ["--max-length 64", "--precision float16", "--samples 2", "--pooling mean", "--highly-variable 20", "--device gpu"],
)
def test_options_of_networks_are_refused_in_one_line(blood_file, run, tmp_path, capsys, option):
    words = embedding(blood_file, tmp_path / "run", *option.split(), checkpoint=str(run / "checkpoint"))
    assert main(words) == BAD_INPUT
    assert f"{option} means nothing to principal components" in capsys.readouterr().err
    assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.parametrize(
    ("change", "checkpoint", "found"),
    [
        (lambda cells: cells, "pca:64", "258 cells with counts of 64 genes"),
        (lambda cells: cells[:9].copy(), "pca:8", "8 cells with counts"),
        (
            lambda cells: anndata.AnnData(cells.X.log1p(), cells.obs, cells.var),
            "pca:3",
            "the counts have the value",
        ),
    ],
)
def test_cells_that_cannot_be_fitted_are_refused(blood, tmp_path, capsys, change, checkpoint, found):
    change(blood).write_h5ad(tmp_path / "cells.h5ad")
    assert main(embedding(tmp_path / "cells.h5ad", tmp_path / "run", checkpoint=checkpoint)) == BAD_INPUT
    assert found in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_values_that_are_not_counts_are_not_projected(blood, run, tmp_path, capsys):
    anndata.AnnData(blood.X.log1p(), blood.obs, blood.var).write_h5ad(tmp_path / "cells.h5ad")
    words = embedding(tmp_path / "cells.h5ad", tmp_path / "run", checkpoint=str(run / "checkpoint"))
    assert main(words) == BAD_INPUT
    assert "expected whole numbers" in capsys.readouterr().err
    assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.slow
def test_a_killed_run_is_finished_byte_by_byte(blood_file, run, tmp_path):
    words = embedding(blood_file, tmp_path / "run")
    with Forked(words, tmp_path) as process:
        process.until(lambda: any((tmp_path / "run").glob("parts/part-*.parquet")))
        process.kill()
    assert main(words) == DONE
    assert content(tmp_path / "run") == content(run)


@pytest.mark.slow
def test_pbmc3k_has_the_components_of_scikit_learn(shared, tmp_path):
    """A third of its cells."""
    cells = anndata.read_h5ad(shared / "data" / "pbmc3k.h5ad")[::3].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    scgpt_ray.embed(
        atlas=str(tmp_path / "cells.h5ad"), checkpoint="pca", output=str(tmp_path / "run"), executor="serial"
    )
    components = read_encoder(tmp_path / "run" / "checkpoint")
    assert components.components_CH.shape == (50, 2000)
    names = cells.var.get("feature_name", cells.var_names)
    vectors = dense_vectors(read_embeddings(Folder.at(tmp_path / "run"))[EMBEDDING])
    agree(vectors, components, names, cells, 1e-4)
