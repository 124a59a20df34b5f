"""Cells in memory get the vectors and labels that the verbs give their file."""

import inspect

import anndata
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scgpt_ray
from scgpt_ray import tl
from scgpt_ray.errors import AtlasError, ConfigError, GeneCoverageError, ReferenceSetError
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.pipelines import map_report
from scgpt_ray.schema import N_GENES
from scgpt_ray.storage import Folder

FEW = 12
LABELS = ["cell_type", "donor"]


@pytest.fixture(scope="module")
def place(blood, blood_file, checkpoint, tmp_path_factory):
    """The cells of `blood`, embedded and indexed, and a few mapped onto them, by the verbs."""
    place = tmp_path_factory.mktemp("tl")
    common = {"executor": "serial", "checkpoint": str(checkpoint)}
    scgpt_ray.embed(**common, atlas=str(blood_file), output=str(place / "e"), obs_columns=LABELS)
    scgpt_ray.build_index(executor="serial", embeddings=str(place / "e"), output=str(place / "i"), label_columns=LABELS)
    blood[:FEW].copy().write_h5ad(place / "few.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_report, "drawn_cells", lambda *_: "No cells are drawn here.")
        scgpt_ray.map_query(
            **common, query=str(place / "few.h5ad"), index=str(place / "i"), output=str(place / "m"), k=5,
            label_columns=["cell_type", "donor"],
        )  # fmt: skip
    return place


@pytest.fixture
def cells(blood):
    adata = blood.copy()
    adata.layers["doubled"] = adata.X * 2
    return adata


@pytest.fixture
def embedded(cells, checkpoint):
    tl.embed(cells, checkpoint)
    return cells


def unchanged(adata, blood):
    assert (adata.X != blood.X).nnz == 0
    assert adata.var.equals(blood.var)
    assert adata.obs[blood.obs.columns].equals(blood.obs)
    return True


def test_embed_gives_the_vectors_of_the_verb(embedded, blood, place):
    stored = read_embeddings(Folder.at(place / "e"))
    present = stored[N_GENES].to_numpy() > 0
    vectors = embedded.obsm["X_scGPT"]
    assert vectors.dtype == np.float32
    assert np.isnan(vectors).all(axis=1).tolist() == (~present).tolist()
    np.testing.assert_allclose(vectors[present], vectors_of(stored)[1], rtol=0, atol=1e-6)
    assert unchanged(embedded, blood)
    assert list(embedded.obs) == list(blood.obs)
    noted = embedded.uns["scgpt_ray"]
    assert (noted["version"], noted["layer"], noted["model"]["max_length"]) == (scgpt_ray.__version__, "X", 1200)
    assert noted["coverage"]["genes_matched"] == 60


def test_the_options_reach_the_network(embedded, cells, checkpoint):
    first = embedded.obsm["X_scGPT"].copy()
    tl.embed(cells, checkpoint, layer="doubled")
    np.testing.assert_allclose(cells.obsm["X_scGPT"], first, rtol=0, atol=1e-6)
    assert cells.uns["scgpt_ray"]["layer"] == "doubled"
    tl.embed(cells, checkpoint, max_length=8)
    assert np.nanmax(np.abs(cells.obsm["X_scGPT"] - first)) > 0.01


@pytest.mark.parametrize("is_embedded", [False, True])
def test_map_gives_the_labels_of_the_verb(blood, checkpoint, place, is_embedded, tmp_path):
    blood = blood[:FEW].copy()
    cells = blood.copy()
    if is_embedded:
        tl.embed(cells, checkpoint)
    columns = ["cell_type", "donor"]
    tl.map(cells, place / "i", None if is_embedded else checkpoint, k=5, label_columns=columns)
    expected = pq.read_table(place / "m" / "predictions.parquet")
    added = [name for name in cells.obs if name not in blood.obs]
    assert added[:2] == ["predicted_cell_type", "predicted_cell_type_confidence"]
    assert "predicted_donor_confidence" in added
    for name in added:
        found = pa.array(cells.obs[name], from_pandas=True)
        assert found.to_pylist() == expected[name.removeprefix("predicted_")].to_pylist(), name
    assert cells.obs["predicted_cell_type"].iloc[5] == "Unknown"
    assert unchanged(cells, blood)
    assert cells.uns["scgpt_ray"]["index"]["place"] == str(place / "i")
    cells.write_h5ad(tmp_path / "mapped.h5ad")
    again = anndata.read_h5ad(tmp_path / "mapped.h5ad")
    tl.map(again, place / "i", k=3, label_columns=["cell_type"])
    assert [name for name in again.obs if "donor" in name] == ["donor"], "an earlier mapping is replaced"
    assert again.uns["scgpt_ray"]["index"]["k"] == 3


def test_one_column_needs_no_list(blood, checkpoint, place):
    one, many = blood[:FEW].copy(), blood[:FEW].copy()
    tl.embed(one, checkpoint, gene_columns="feature_name")
    tl.embed(many, checkpoint, gene_columns=np.array(["feature_name"]))
    tl.map(one, place / "i", k=5, label_columns="cell_type", exclude_same="donor")
    tl.map(many, place / "i", k=5, label_columns=blood.obs.columns[[0]], exclude_same=["donor"])
    assert blood.obs.columns[0] == "cell_type"
    assert [name for name in one.obs if name.endswith("_confidence")] == ["predicted_cell_type_confidence"]
    assert one.obs.equals(many.obs)
    np.testing.assert_array_equal(one.obsm["X_scGPT"], many.obsm["X_scGPT"])


def test_the_verbs_take_an_anndata(blood, checkpoint, place, tmp_path, caplog):
    caplog.set_level("INFO")
    options = {"checkpoint": str(checkpoint), "output": str(tmp_path / "e"), "executor": "serial"}
    done = scgpt_ray.embed(atlas=blood, **options)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "e" / "parts").iterdir()}
    assert scgpt_ray.embed(atlas=blood.copy(), **options).fingerprint == done.fingerprint, "the same cells"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "e" / "parts").iterdir()} == parts
    [file] = (tmp_path / "e").glob("cells-*.h5ad")
    assert f"atlas: the AnnData is stored as {file}" in caplog.text
    stored, expected = (read_embeddings(Folder.at(folder)) for folder in (tmp_path / "e", place / "e"))
    np.testing.assert_array_equal(vectors_of(stored)[1], vectors_of(expected)[1])
    with pytest.raises(ConfigError, match="an AnnData as atlas; expected a path"):
        scgpt_ray.plan(atlas=blood, checkpoint=str(checkpoint))


def mixed_obs(adata):
    adata.obs["a note"] = ["x", 1, *[2.0] * (adata.n_obs - 2)]


def mixed_var(adata):
    adata.var["rank"] = ["x", *range(1, adata.n_vars)]


def an_object(adata):
    adata.uns["run"] = {"by": object()}


def taken_name(adata):
    adata.obs.index.name = "donor"


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (mixed_obs, r"^the AnnData: obs\['a note'\] cannot be stored as .h5ad: .*; change it, .* by .astype\(str\)"),
        (mixed_var, r"^the AnnData: var\['rank'\] cannot be "),
        (an_object, r"^the AnnData: uns\['run'\]\['by'\] cannot be "),
        (taken_name, "^the AnnData: obs cannot be .*'donor'"),
    ],
)
def test_an_anndata_that_no_file_holds(change, pattern, blood, checkpoint, tmp_path):
    cells = blood[:FEW].copy()
    change(cells)
    with pytest.raises(AtlasError, match=pattern):
        scgpt_ray.embed(atlas=cells, checkpoint=str(checkpoint), output=str(tmp_path / "e"), executor="serial")
    assert not (tmp_path / "e").exists()
    tl.embed(cells, checkpoint)
    assert "X_scGPT" in cells.obsm, "in memory nothing is stored"


def test_neighbours_of_the_same_donor_are_left_out(embedded, place):
    tl.map(embedded, place / "i", label_columns=["donor"], exclude_same=["donor"], k=3)
    present = ~np.isnan(embedded.obsm["X_scGPT"]).any(axis=1)
    predicted = embedded.obs.loc[present, "predicted_donor"].astype(str)
    assert (predicted != embedded.obs.loc[present, "donor"]).all()


def test_a_column_of_the_user_is_not_replaced(embedded, place):
    embedded.obs["predicted_cell_type"] = "mine"
    with pytest.raises(ConfigError, match=r"obs has a column predicted_cell_type; expected .*; rename it"):
        tl.map(embedded, place / "i")
    assert set(embedded.obs["predicted_cell_type"]) == {"mine"}
    tl.map(embedded, place / "i", label_columns=["donor"])


def test_mistakes(cells, checkpoint, place):
    cells.obsm["X_scGPT"] = np.ones((cells.n_obs, 32), np.float32)
    with pytest.raises(ConfigError, match=r"obsm.* is not of scgpt_ray.tl.embed; .*give the checkpoint"):
        tl.map(cells, place / "i")
    del cells.obsm["X_scGPT"]
    other = cells.copy()
    del other.obs["donor"]
    with pytest.raises(ConfigError, match=r"the AnnData: obs has no column donor; expected columns of cell_type"):
        tl.map(other, place / "i", checkpoint, exclude_same=["donor"])
    with pytest.raises(ConfigError, match="--max-length"):
        tl.embed(cells, checkpoint, max_length=1)
    tl.embed(cells, checkpoint, seed=1, samples=2, pooling="mean")
    message = r"differ in the model \(pooling: 'mean' against 'cls', samples: 2 against 1, seed: 1 against 0\)"
    with pytest.raises(ReferenceSetError, match=message):
        tl.map(cells, place / "i")
    cells.var["feature_name"] = [name.lower() for name in cells.var["feature_name"]]
    with pytest.raises(GeneCoverageError, match=r"the AnnData: genes of the vocabulary hold 0.0% of the counts"):
        tl.embed(cells, checkpoint)


@pytest.mark.parametrize("function", [tl.embed, tl.map])
def test_signatures_are_typed_and_every_argument_is_described(function):
    parameters = inspect.signature(function).parameters
    assert all(each.annotation is not inspect.Parameter.empty for each in parameters.values())
    arguments = inspect.getdoc(function).partition("Args:")[2].partition("Raises:")[0]
    assert [line.split(":")[0].strip() for line in arguments.splitlines() if line.startswith("    ") and line[4] != " "]
    assert all(f"\n    {name}: " in arguments for name in parameters)
