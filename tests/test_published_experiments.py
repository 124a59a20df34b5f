"""The published experiments of the recipes, on stand-in files of the same layout."""

import contextlib
import io
import json

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import silhouette_score

from jobs import integration, reference_mapping
from scgpt_ray.evaluation.components import log1p_cp10k
from scgpt_ray.pipelines.integrate import BASELINE
from scgpt_ray.records import Manifest
from scgpt_ray.storage import Folder

for package in ("scib_metrics", "leidenalg", "skmisc", "umap"):
    pytest.importorskip(package, reason=f"needs {package}: pip install 'scgpt-ray[eval]'")

N, G = 150, 3200
NAMES = [f"GENE{number}" for number in range(G)]
LAYOUTS = {
    "lung_kim": ("cell_type", "sample", "gene_name"),
    "covid": ("celltype", "str_batch", "gene_name"),
    "ms": ("celltype", "Sample Characteristic[individual]", "gene_name"),
    "pancreas": ("celltype", "tech", "index"),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    from scgpt_ray.network.checkpoint import random_checkpoint

    folder = tmp_path_factory.mktemp("network") / "whole-human"
    random_checkpoint(folder, NAMES[:-7], embsize=32, nheads=2, d_hid=32, nlayers=1)
    return str(folder)


def stand_in(name, seed=0):
    """Cells of three types in two batches, in the columns of an experiment; whole counts in X, 3,200 genes."""
    label, batch, genes = LAYOUTS[name]
    random = np.random.default_rng(seed)
    rates = np.random.default_rng(9).gamma(0.15, 1.2, (3, G))
    kinds = np.arange(N) % 3
    counts = random.poisson(rates[kinds]).astype(np.float32)
    obs = {label: np.array(["B", "T", "NK"], object)[kinds], batch: np.array(["a", "b"])[np.arange(N) // 3 % 2]}
    cells = anndata.AnnData(sp.csr_matrix(counts), obs=pd.DataFrame(obs, index=[f"c{row}" for row in range(N)]))
    cells.var_names = NAMES if genes == "index" else [f"ENSG{number:011d}" for number in range(G)]
    if genes != "index":
        cells.var[genes] = NAMES
    return cells


def log_normalised(cells):
    """X as most of the published files have it, with the counts in a layer."""
    cells.layers["counts"] = cells.X
    cells.X = log1p_cp10k(cells.X)
    return cells


def printed(recipe, *words):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        recipe.main([str(word) for word in words])
    lines = output.getvalue().splitlines()
    return lines, json.loads(lines[-1])


def refused(recipe, capsys, *words):
    """The last line of a refusal."""
    with pytest.raises(SystemExit) as caught:
        recipe.main([str(word) for word in words])
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def scores_of(folder):
    """Scores of each embedding in metrics.json, and metrics.json."""
    metrics = json.loads((folder / "integration" / "metrics.json").read_bytes())
    return {each["name"]: each for each in metrics["integration"]["scores"]}, metrics


def components_of(cells, n_genes, label):
    """ASW label of 40 components of X as it is, as the notebooks compute them with scanpy."""
    import scanpy as sc

    if n_genes:
        sc.pp.highly_variable_genes(cells, n_top_genes=n_genes, flavor="seurat_v3", check_values=False)
        cells = cells[:, cells.var["highly_variable"]].copy()
    sc.pp.pca(cells, n_comps=40)
    return (silhouette_score(cells.obsm["X_pca"], cells.obs[label].astype(str)) + 1) / 2


@pytest.mark.slow
def test_lung_kim(network, tmp_path):
    """Cells without annotation are removed before 3,000 genes are ranked by the counts in X."""
    cells = stand_in("lung_kim")
    cells.obs.loc[cells.obs_names[:6], "cell_type"] = np.nan
    cells.write_h5ad(tmp_path / "kim.h5ad")
    lines, result = printed(
        integration,
        *("--experiment", "lung_kim", "--cells", tmp_path / "kim.h5ad", "--checkpoint", network),
        *("--output", tmp_path / "out"),
    )
    scores, metrics = scores_of(tmp_path / "out")
    assert result["n_evaluated"] == N - 6
    assert scores[BASELINE]["asw_label"] == pytest.approx(components_of(cells[6:].copy(), 3000, "cell_type"), abs=1e-4)
    assert metrics["counts"], "X has counts"
    manifest = Manifest.read(Folder.at(tmp_path / "out" / "embeddings" / "whole-human"))
    assert (manifest.n_cells, manifest.fingerprint.cells["highly_variable"]) == (N - 6, 3000)
    assert "published, whole-human       0.7752    0.9500" in lines
    assert "published, 40 PCs of HVGs    0.6789    0.8084" in lines
    assert result["published"]["whole-human"] == [0.7752, 0.95]


@pytest.mark.slow
def test_pancreas(network, tmp_path):
    """X is log-normalised: genes and components are of X, effects of the counts in the layer."""
    cells = log_normalised(stand_in("pancreas"))
    cells.write_h5ad(tmp_path / "pancreas.h5ad")
    words = ("--experiment", "pancreas", "--checkpoint", network, "--output", tmp_path / "out", "--cells")
    lines, _ = printed(integration, *words, tmp_path / "pancreas.h5ad")
    scores, metrics = scores_of(tmp_path / "out")
    assert scores[BASELINE]["asw_label"] == pytest.approx(components_of(cells.copy(), 1800, "celltype"), abs=1e-4)
    assert (metrics["effects"][0]["name"], metrics["effects"][0]["kind"]) == ("tech", "cannot tell")
    assert metrics["no_counts"] is None
    assert "published, scGPT_CP          0.6348    0.9236" in lines


def test_pancreas_without_counts_is_refused(network, tmp_path, capsys):
    cells = log_normalised(stand_in("pancreas"))
    del cells.layers["counts"]
    cells.write_h5ad(tmp_path / "pancreas.h5ad")
    words = ("--experiment", "pancreas", "--checkpoint", network, "--output", tmp_path / "out", "--cells")
    assert "no layer counts" in refused(integration, capsys, *words, tmp_path / "pancreas.h5ad")


@pytest.mark.slow
def test_covid(network, tmp_path):
    """All genes, X as it is; without counts the components are there nevertheless."""
    cells = log_normalised(stand_in("covid"))
    del cells.layers["counts"]
    cells.write_h5ad(tmp_path / "covid.h5ad")
    words = ("--experiment", "covid", "--checkpoint", network, "--output", tmp_path / "out")
    lines, result = printed(integration, *words, "--cells", tmp_path / "covid.h5ad")
    scores, metrics = scores_of(tmp_path / "out")
    assert scores[BASELINE]["asw_label"] == pytest.approx(components_of(cells, 0, "celltype"), abs=1e-4)
    assert "which is no count" in metrics["no_counts"] or "the counts have the value" in metrics["no_counts"]
    assert result["scores"].keys() == {"whole-human", BASELINE}
    assert "published, whole-human       0.4888    0.8741" in lines


@pytest.fixture
def halves(tmp_path):
    """Two files of MS: the first has gene names as its index; each lacks genes of the other, and both a cell c0."""
    first, second = (log_normalised(stand_in("ms", seed)) for seed in (1, 2))
    first = first[:90, :-100].copy()
    first.var_names = first.var.pop("gene_name").to_numpy()
    second = second[:60, 50:].copy()
    second.obs["age"] = 3
    first.write_h5ad(tmp_path / "c_data.h5ad")
    second.write_h5ad(tmp_path / "filtered_ms_adata.h5ad")
    return first, second


def test_files_are_joined_by_gene_name(halves, tmp_path):
    columns = ["celltype", "Sample Characteristic[individual]"]
    files = [str(tmp_path / "c_data.h5ad"), str(tmp_path / "filtered_ms_adata.h5ad")]
    place = integration.joined(files, "gene_name", columns, Folder.at(tmp_path / "out"))
    cells = anndata.read_h5ad(place)
    assert cells.shape == (150, G)
    assert set(cells.var["gene_name"]) == set(NAMES)
    assert cells.obs_names.is_unique
    for part, rows in zip(halves, (slice(0, 90), slice(90, 150)), strict=True):
        names = part.var.get("gene_name", part.var_names.to_series()).to_numpy()
        np.testing.assert_array_equal(cells[rows, names].X.toarray(), part.X.toarray())
        assert cells[rows].X.sum() == pytest.approx(part.X.sum(), rel=1e-5), "genes that a file lacks have no counts"
        assert cells.obs["celltype"].iloc[rows].tolist() == part.obs["celltype"].tolist()
    before = (tmp_path / place).stat().st_mtime_ns
    assert integration.joined(files, "gene_name", columns, Folder.at(tmp_path / "out")) == place
    assert (tmp_path / place).stat().st_mtime_ns == before
    halves[1][:50].copy().write_h5ad(files[1])
    assert integration.joined(files, "gene_name", columns, Folder.at(tmp_path / "out")) != place


@pytest.mark.slow
def test_ms(halves, network, tmp_path):
    words = ("--experiment", "ms", "--checkpoint", network, "--output", tmp_path / "out")
    lines, result = printed(
        integration, *words, "--cells", tmp_path / "c_data.h5ad", tmp_path / "filtered_ms_adata.h5ad"
    )
    assert result["n_evaluated"] == 150
    assert scores_of(tmp_path / "out")[0].keys() == {"whole-human", BASELINE}
    assert "published, whole-human       0.4525    0.9129" in lines


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--cells", "c_data.h5ad"), "1 files for --experiment ms; expected 2"),
        (("--cells", "c_data.h5ad", "absent.h5ad"), "absent.h5ad: no such file"),
        (("--cells", "c_data.h5ad", "kim.h5ad"), "kim.h5ad: obs has no column celltype, Sample"),
        (("--cells", "c_data.h5ad", "twice.h5ad"), "twice.h5ad names the gene GENE1 twice"),
        (("--cells", "a.h5ad", "b.h5ad", "--label-column", "x"), "--label-column with --experiment ms"),
    ],
)
def test_what_an_experiment_cannot_do_is_an_error(halves, network, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    stand_in("lung_kim").write_h5ad("kim.h5ad")
    twice = halves[1].copy()
    twice.var["gene_name"] = ["GENE1", "GENE1", *twice.var["gene_name"][2:]]
    twice.write_h5ad("twice.h5ad")
    words = ("--experiment", "ms", "--checkpoint", network, "--output", tmp_path / "out")
    assert message in refused(integration, capsys, *words, *more)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lung_kim", "covid", "ms"])
def test_mapping(network, tmp_path, name):
    for seed, file in enumerate(("train.h5ad", "test.h5ad")):
        cells = stand_in(name, seed)
        (cells if name == "lung_kim" else log_normalised(cells)).write_h5ad(tmp_path / file)
    lines, result = printed(
        reference_mapping,
        *("--experiment", name, "--checkpoint", network, "--output", tmp_path / "out"),
        *("--reference", tmp_path / "train.h5ad", "--query", tmp_path / "test.h5ad"),
    )
    assert result["methods"].keys() == {"embeddings + kNN", "PCA + kNN", "majority class"}
    assert result["methods"]["PCA + kNN"]["accuracy"] > 0.9
    published = {"lung_kim": (0.9694, 0.9515), "covid": (0.8668, 0.4835), "ms": None}[name]
    found = result["published"] and (result["published"]["accuracy"], result["published"]["macro_f1"])
    assert found == published
    assert sum(line.startswith("published, whole-human") for line in lines) == (published is not None)


def test_a_mapping_whose_baseline_cannot_be_made_is_refused(network, tmp_path, capsys):
    """The notebook normalises the files of Lung-Kim: log-normalised ones are not those."""
    for seed, file in enumerate(("train.h5ad", "test.h5ad")):
        log_normalised(stand_in("lung_kim", seed)).write_h5ad(tmp_path / file)
    words = ("--experiment", "lung_kim", "--checkpoint", network, "--output", tmp_path / "out")
    files = ("--reference", tmp_path / "train.h5ad", "--query", tmp_path / "test.h5ad")
    assert "which is no count" in refused(reference_mapping, capsys, *words, *files)
    assert "expected --label-column" in refused(reference_mapping, capsys, *words[2:], *files)
    message = "--label-column or --gene-columns with --experiment lung_kim"
    assert message in refused(reference_mapping, capsys, *words, *files, "--label-column", "cell_type")
