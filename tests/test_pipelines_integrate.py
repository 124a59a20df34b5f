"""Integration, from folders of embeddings to metrics, verdicts, pictures and a report."""

import json
import re
import shutil

import anndata
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import silhouette_score

import scgpt_ray
from scgpt_ray.atlas.source import locate
from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError, ConfigError, InputError, ReferenceSetError
from scgpt_ray.evaluation.components import N_COMPONENTS, log1p_cp10k
from scgpt_ray.evaluation.sample import numbered
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.pipelines.embedding_sets import compared_cells, short_names
from scgpt_ray.pipelines.integrate import BASELINE
from scgpt_ray.pipelines.raw_counts import read_counts
from scgpt_ray.storage import Folder

pytest.importorskip("scib_metrics", reason="needs scib-metrics: pip install 'scgpt-ray[eval]'")
pytest.importorskip("leidenalg", reason="needs leidenalg: pip install 'scgpt-ray[eval]'")
pytest.importorskip("umap", reason="needs umap-learn: pip install 'scgpt-ray[eval]'")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("integrate")


@pytest.fixture(scope="module")
def lanes(blood):
    """`blood` with a lane that differs in nothing; two of its 260 cells are empty."""
    cells = blood.copy()
    cells.obs["lane"] = np.array(["l1", "l2"])[np.arange(260) // 3 % 2]
    return cells


@pytest.fixture(scope="module")
def embedded(lanes, checkpoint, place):
    """The cells embedded twice, with two lengths of token lists."""
    lanes.write_h5ad(place / "blood.h5ad")
    for name, max_length in (("long", 1200), ("short", 20)):
        scgpt_ray.embed(
            executor="serial",
            atlas=str(place / "blood.h5ad"),
            checkpoint=str(checkpoint),
            output=str(place / name),
            obs_columns=["cell_type", "donor", "lane"],
            max_length=max_length,
            cells_per_partition=100,
        )
    return place


def options(place, output, **more):
    return {
        "embeddings": [str(place / "long"), str(place / "short")],
        "label_column": "cell_type",
        "batch_column": "lane",
        "factor_columns": ["donor", "n_genes"],
        "output": str(place / output),
        **more,
    }


@pytest.fixture(scope="module")
def integrated(embedded):
    return scgpt_ray.integrate(**options(embedded, "out"))


def shares_by_hand(vectors, labels, lanes):
    """Silhouette of the labels on a scale from 0 to 1, and the variance between lanes as a share of all."""
    centred = vectors - vectors.mean(axis=0)
    between = sum((lanes == lane).sum() * (centred[lanes == lane].mean(axis=0) ** 2).sum() for lane in ("l1", "l2"))
    return (silhouette_score(vectors, labels) + 1) / 2, between / (centred**2).sum()


def test_metrics_are_those_of_the_embeddings_and_the_baseline(integrated, embedded, lanes):
    """By definition, for two metrics; the baseline by singular values of the scaled logs of all 64 genes."""
    kept = np.array([number not in (5, 77) for number in range(260)])
    counts = lanes.X[kept].toarray().astype(np.float64)
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    left, values, _ = np.linalg.svd(logs - logs.mean(axis=0), full_matrices=False)
    embeddings = {name: vectors_of(read_embeddings(Folder.at(embedded / name)))[1] for name in ("long", "short")}
    embeddings[BASELINE] = (left * values)[:, :N_COMPONENTS]
    labels, lane = (lanes.obs[column][kept].to_numpy(str) for column in ("cell_type", "lane"))
    expected = {name: shares_by_hand(vectors.astype(np.float64), labels, lane) for name, vectors in embeddings.items()}
    assert [scores.name for scores in integrated.integration.scores] == list(expected)
    found = {scores.name: (scores.asw_label, scores.pcr) for scores in integrated.integration.scores}
    assert found == {name: pytest.approx(shares, rel=1e-3) for name, shares in expected.items()}
    assert len({round(share, 4) for shares in found.values() for share in shares}) == 6, "no two that could be swapped"
    better = [max(0, 1 - expected[name][1] / expected[BASELINE][1]) for name in ("long", "short")]
    compared = [scores.pcr_comparison for scores in integrated.integration.scores]
    assert compared == [*(pytest.approx(share, rel=1e-3) for share in better), None]


def test_what_was_evaluated_is_in_the_metrics(integrated, embedded):
    assert (integrated.selection.n_evaluated, integrated.selection.n_without_embedding) == (258, 2)
    metrics = json.loads((embedded / "out" / "metrics.json").read_bytes())
    assert metrics == json.loads(json.dumps(integrated.metrics()))
    assert [scores["name"] for scores in metrics["integration"]["scores"]] == ["long", "short", BASELINE]
    assert metrics["integration"]["batch_keys"] == {"l1": 131, "l2": 127}
    assert (metrics["no_counts"], metrics["counts"]) == (None, str(embedded / "blood.h5ad"))


def test_factors_are_explained(integrated):
    lane, donor, n_genes, depth = integrated.effects
    assert (integrated.replicates.name, integrated.replicates.n) == ("donor", 2), "by default"
    assert (lane.name, lane.kind, lane.unit, lane.replicates) == ("lane", "cannot tell", "donor", {"l1": 2, "l2": 2})
    assert lane.no_shift == "fewer than 3 replicates (donor) per level can be compared"
    assert (donor.kind, donor.unit) == ("cannot tell", "cell"), "each label has one donor"
    assert donor.no_shift == "no label has two of its levels with enough cells and counts to compare"
    assert n_genes.name == "n_genes"
    assert n_genes.embeddings[0].probe is None, "a label has one donor, which cannot be held out"
    assert n_genes.embeddings[0].purity.expected < 0.4
    assert depth.no_shift == "it is the depth itself"
    assert "lane: cannot tell whether its effect is type I or type II" in integrated.text()


def test_report_and_pictures(integrated, embedded):
    from bokeh.document import Document

    output = embedded / "out"
    page = (output / "report.html").read_text()
    assert page.count("<svg xmlns:xlink") == 7, "three embeddings by label and by batch key, and genes per cell"
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|@import', page[: page.index("<script>")])
    plots = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])["plots"]
    (row,) = Document.from_json(plots["doc"]).roots
    assert [panel.title.text for panel in row.children] == ["long", "short", BASELINE]
    legends = dict(re.findall(r'aria-label="Legend of (.*?)" hidden>(.*?)</div>', page, re.DOTALL))
    assert list(legends) == ["cell_type", "lane", "n_genes", "obs_id", "donor"]
    assert "strip" in legends["n_genes"]
    counts = {label: int(cells) for label, cells in re.findall("<span>(.*?)</span><b>(.*?)</b>", legends["lane"])}
    assert counts == integrated.integration.batch_keys
    assert "UMAP of 258 of the 258 evaluated cells" in page
    assert "by lane; 2 cells have none." in page
    for text in ("AvgBIO", BASELINE, "lane: cannot tell whether", "donor: 2", "258 of 260 cells are evaluated"):
        assert text in page
    for name in ("umap.png", "umap-batch.png"):
        assert (output / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_run_is_tracked(integrated, embedded):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{embedded / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("scgpt_ray").experiment_id
    (run,) = client.search_runs([experiment], "tags.verb = 'integrate'")
    long = integrated.integration.scores[0]
    assert run.data.metrics["long/avg_bio"] == long.avg_bio
    assert "HVG - PCA/avg_batch" in run.data.metrics
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} == {
        "metrics.json", "report.html", "umap.png", "umap-batch.png",
    }  # fmt: skip


def test_the_command_line_on_a_sample_without_labels_or_counts(embedded, tmp_path, capsys):
    moved, given = tmp_path / "moved", tmp_path / "given.parquet"
    shutil.copytree(embedded / "long", moved)
    made = read_embeddings(Folder.at(moved)).select(["obs_id", "embedding"])[::-1]
    pq.write_table(made.cast(pa.schema([("obs_id", pa.string()), ("embedding", pa.list_(pa.float32()))])), given)
    (embedded / "blood.h5ad").rename(embedded / "hidden.h5ad")
    words = ["--embeddings", str(moved), str(given), "--batch-column", "lane", "--output", str(tmp_path / "out")]
    try:
        code = main(["integrate", *words, "--max-cells", "100", "--seed", "3"])
    finally:
        (embedded / "hidden.h5ad").rename(embedded / "blood.h5ad")
    told = capsys.readouterr()
    assert code == DONE, told.err
    result = json.loads(told.out.splitlines()[-1])
    assert (result["n_cells"], result["n_evaluated"]) == (260, 100)
    assert result["scores"]["moved"]["avg_bio"] is None
    assert result["scores"]["moved"]["avg_batch"] > 0
    assert result["scores"]["given.parquet"] == result["scores"]["moved"], "the same vectors in another order"
    assert result["effects"] == {"lane": "cannot tell"}
    assert "Without baseline and genes:" in told.out
    assert "blood.h5ad: no such file" in told.out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_bytes())
    assert metrics["cells"]["is_sample"] is True
    assert metrics["cells"]["seed"] == 3
    assert "all cells have the same label, or none" in metrics["integration"]["scores"][0]["undefined"]["nmi"]


def test_an_atlas_that_changed_is_not_read(embedded, lanes, tmp_path):
    kept = (embedded / "blood.h5ad").rename(embedded / "kept.h5ad")
    lanes.write_h5ad(embedded / "blood.h5ad")
    try:
        integrated = scgpt_ray.integrate(
            **options(embedded, "changed", embeddings=[str(embedded / "long")], factor_columns=[])
        )
    finally:
        kept.rename(embedded / "blood.h5ad")
    assert "blood.h5ad is not as it was embedded (" in integrated.no_counts
    assert [scores.name for scores in integrated.integration.scores] == ["long"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"label_column": "tissue"},
            ConfigError,
            "carries no column tissue; expected one of n_genes, cell_type, donor, lane",
        ),
        ({"batch_column": "site"}, ConfigError, "carries no column site"),
        ({"replicate_column": "mouse"}, ConfigError, "carries no column mouse"),
        ({"factor_columns": ["age"]}, ConfigError, "carries no column age"),
        ({"factor_columns": ["lane"]}, ConfigError, "name a column twice"),
        ({"embeddings": []}, ConfigError, "--embeddings"),
        ({"embeddings": ["/nowhere"]}, ReferenceSetError, "/nowhere has no manifest.json"),
        ({"embeddings": ["a.parquet"]}, ConfigError, "--embeddings names the file a.parquet first; expected an output"),
        ({"max_cells": 3}, ConfigError, "--max-cells"),
        ({"counts": "/nowhere.h5ad"}, AtlasError, "/nowhere.h5ad: no such file"),
        ({"output": "/proc/nowhere"}, InputError, "cannot be written"),
    ],
)
def test_bad_input_is_refused(embedded, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        scgpt_ray.integrate(**(options(embedded, "refused") | changes))


def test_counts_of_other_cells_are_refused(embedded, lanes):
    lanes[::-1].copy().write_h5ad(embedded / "reversed.h5ad")
    with pytest.raises(AtlasError, match=r"reversed.h5ad has other cells than the embeddings"):
        scgpt_ray.integrate(**options(embedded, "refused", counts=str(embedded / "reversed.h5ad")))
    lanes[:100].copy().write_h5ad(embedded / "fewer.h5ad")
    with pytest.raises(AtlasError, match=r"fewer.h5ad has other cells than the embeddings"):
        scgpt_ray.integrate(**options(embedded, "refused", counts=str(embedded / "fewer.h5ad")))
    logs = lanes.copy()
    logs.X = logs.X.log1p()
    logs.write_h5ad(embedded / "logs.h5ad")
    with pytest.raises(InputError, match="expected whole numbers"):
        scgpt_ray.integrate(**options(embedded, "refused", counts=str(embedded / "logs.h5ad")))


@pytest.fixture(scope="module")
def logs(lanes, checkpoint, place):
    """Embeddings of the variable genes of log-normalised values; the raw counts are in a layer."""
    pytest.importorskip("skmisc", reason="needs scikit-misc: pip install 'scgpt-ray[eval]'")
    cells = lanes.copy()
    cells.layers["counts"] = cells.X.copy()
    cells.X = log1p_cp10k(cells.X)
    cells.write_h5ad(place / "norm.h5ad")
    scgpt_ray.embed(
        executor="serial",
        atlas=str(place / "norm.h5ad"),
        layer="X",
        checkpoint=str(checkpoint),
        output=str(place / "norm"),
        obs_columns=["cell_type", "lane"],
        highly_variable=24,
    )
    return place


AS_STORED = {"factor_columns": [], "baseline_values": "stored", "highly_variable": 24, "flavor": "seurat_v3"}


def test_components_of_values_as_stored_and_effects_on_counts(logs):
    integrated = scgpt_ray.integrate(
        **options(logs, "stored", embeddings=[str(logs / "norm")], counts_layer="counts", **AS_STORED)
    )
    import scanpy as sc

    cells = anndata.read_h5ad(logs / "norm.h5ad")
    cells = cells[np.delete(np.arange(260), [5, 77])].copy()
    sc.pp.highly_variable_genes(cells, n_top_genes=24, flavor="seurat_v3", check_values=False)
    sc.pp.pca(cells, n_comps=23, mask_var="highly_variable")
    expected = (silhouette_score(cells.obsm["X_pca"], cells.obs["cell_type"]) + 1) / 2
    mine, baseline = integrated.integration.scores
    assert (mine.name, baseline.name) == ("norm", BASELINE)
    assert baseline.asw_label == pytest.approx(expected, rel=1e-4)
    assert integrated.baseline == "40 of 24 highly variable genes (seurat_v3), the values as stored"
    assert integrated.effects[0].shift is not None, "the counts of the layer were read"


def test_components_of_values_as_stored_without_counts(logs):
    integrated = scgpt_ray.integrate(**options(logs, "no-counts", embeddings=[str(logs / "norm")], **AS_STORED))
    assert [scores.name for scores in integrated.integration.scores] == ["norm", BASELINE]
    assert integrated.effects[0].shift is None
    assert "Without genes: " in integrated.text()
    assert "norm.h5ad: the counts have the value" in integrated.no_counts


@pytest.mark.parametrize(
    ("more", "message"),
    [({"counts_layer": "raw_counts"}, "no layer raw_counts"), ({"counts_layer": "X"}, "expected whole numbers")],
)
def test_counts_that_are_named_must_be_there(logs, more, message):
    with pytest.raises(InputError, match=message):
        scgpt_ray.integrate(**options(logs, "refused", embeddings=[str(logs / "norm")], factor_columns=[], **more))


@pytest.mark.parametrize("more", [{"counts_layer": "counts"}, {"baseline_values": "stored"}])
def test_without_the_atlas_what_is_asked_of_it_is_refused(logs, more):
    (logs / "norm.h5ad").rename(logs / "hidden-norm.h5ad")
    try:
        with pytest.raises(InputError, match=r"norm.h5ad: no such file.*name it with --counts"):
            scgpt_ray.integrate(**options(logs, "refused", embeddings=[str(logs / "norm")], factor_columns=[], **more))
    finally:
        (logs / "hidden-norm.h5ad").rename(logs / "norm.h5ad")


def test_one_batch_key_is_refused(blood, checkpoint, tmp_path, capsys):
    blood[blood.obs["donor"] == "d1"].copy().write_h5ad(tmp_path / "one.h5ad")
    scgpt_ray.embed(
        executor="serial",
        atlas=str(tmp_path / "one.h5ad"),
        checkpoint=str(checkpoint),
        output=str(tmp_path / "one"),
        obs_columns=["cell_type", "donor"],
    )
    words = ["--embeddings", str(tmp_path / "one"), "--batch-column", "donor", "--label-column", "cell_type"]
    assert main(["integrate", *words, "--output", str(tmp_path / "out")]) == BAD_INPUT
    assert "all 171 cells have the same donor, or none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_folders_of_other_cells_are_refused(make_embeddings, tmp_path):
    for name, more in (("a", {}), ("b", {"n_cells": 19}), ("c", {"empty": (4,)})):
        make_embeddings(tmp_path / name, **more)
    with pytest.raises(
        ReferenceSetError, match=r"b holds other cells than .*a: 19 against 20, and soma_joinid differs"
    ):
        compared_cells((str(tmp_path / "a"), str(tmp_path / "b")), [])
    with pytest.raises(ReferenceSetError, match="and n_genes differs"):
        compared_cells((str(tmp_path / "a"), str(tmp_path / "c")), [])
    make_embeddings(tmp_path / "d", cells_per_part=5)
    assert list(compared_cells((str(tmp_path / "a"), str(tmp_path / "d")), []).sets) == ["a", "d"], "in other parts"


def test_only_the_evaluated_cells_are_read_whole(make_embeddings, tmp_path):
    folder = make_embeddings(tmp_path / "a")
    cells = compared_cells((str(tmp_path / "a"),), ["kind", "age"])
    assert cells.column_names == ["soma_joinid", "n_genes", "obs_id", "kind", "age"]
    assert cells.present.tolist() == [number != 3 for number in range(20)]
    rows = np.array([0, 2, 7, 8, 19])
    everything = read_embeddings(folder)["embedding"].to_pylist()
    np.testing.assert_array_equal(
        next(iter(cells.sets.values()))(rows), np.array([everything[row] for row in rows], np.float32)
    )
    table = cells.table(rows)
    assert table.column_names == cells.column_names
    assert table["kind"].to_pylist() == ["B", None, "T", None, "T"]
    assert table["age"].to_pylist() == rows.tolist()
    every = read_embeddings(folder)
    for column in ("kind", "age"):
        assert cells.numbered(column).tolist() == numbered(every[column].to_pylist())[0].tolist()


def test_names_are_as_short_as_can_be():
    assert short_names(["/a/human", "/a/cp"]) == ["human", "cp"]
    assert short_names(["/a/human/out", "/a/cp/out"]) == ["human/out", "cp/out"]
    with pytest.raises(ConfigError, match="twice"):
        short_names(["/a/human", "/a/human"])


@pytest.mark.parametrize("kind", ["h5ad", "soma"])
def test_counts_are_those_of_the_atlas(blood, blood_file, make_soma, tmp_path, kind):
    atlas = str(blood_file) if kind == "h5ad" else make_soma(blood, tmp_path / "atlas")
    rows = np.array([0, 5, 6, 100, 259])
    counts = read_counts(locate(atlas, CellSettings()), rows, blood.obs_names[rows].tolist())
    np.testing.assert_array_equal(counts.counts_NG.toarray(), blood.X[rows].toarray())
    assert counts.genes_G.tolist() == blood.var["feature_name"].tolist()
    with pytest.raises(AtlasError, match="other cells"):
        read_counts(locate(atlas, CellSettings()), rows, ["x"] * 5)
