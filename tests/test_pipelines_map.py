"""Mapping, from an .h5ad query to labels and a report, against a vote by hand."""

import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import anndata
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy import sparse

import scgpt_ray
from scgpt_ray.atlas import h5ad
from scgpt_ray.config import MapSettings
from scgpt_ray.errors import AtlasError, ConfigError, InputError, ReferenceSetError
from scgpt_ray.evaluation.components import fit_components
from scgpt_ray.evaluation.labels.baseline import BASELINE, N_COMPONENTS, nearest_labels, pca_knn
from scgpt_ray.evaluation.labels.label_evaluation import METHOD, evaluate
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.mapping.rejection import Thresholds
from scgpt_ray.mapping.shift import Position
from scgpt_ray.network.checkpoint import read_checkpoint
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.pipelines import baseline, map_report, overview
from scgpt_ray.pipelines.calibrate import calibrations, query_positions
from scgpt_ray.pipelines.map import TERMS, _promises, prediction_rules, reference_cells
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID, OBS_ID
from scgpt_ray.storage import Folder

K = 7
PLAIN = ("", "_confidence", "_voted", "_runner_up", "_runner_up_share", "_unknown")
CALIBRATED = {"calibrate_by": "sample", "label_columns": ["cell_type"], "truth_column": "cell_type"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("map")


@pytest.fixture(scope="module")
def files(blood, place):
    """200 reference cells, one of them (5) empty; 60 query cells, of which cell-077 is empty.

    The query has its genes in another order and under other names, lacks one and has one more.
    """
    order = np.argsort([number % 4 == 1 for number in range(260)], kind="stable")
    cells = blood[order].copy()
    cells.obs["sample"] = [f"s{number // 3 % 5}" for number in range(260)]
    cells.obs[TERMS] = cells.obs["cell_type"].map({"B": "CL:0000236", "T": "CL:0000084", "NK": "CL:0000623"})
    cells[:200].copy().write_h5ad(place / "reference.h5ad")
    assert {"cell-005", "cell-077"} <= set(cells.obs_names)
    query = cells[200:, :0:-1].copy()
    query.var_names = query.var.pop("feature_name").to_numpy()
    query.write_h5ad(place / "query.h5ad")
    return place / "reference.h5ad", place / "query.h5ad"


@pytest.fixture(scope="module")
def reference(files, checkpoint, place):
    scgpt_ray.embed(
        executor="serial",
        atlas=str(files[0]),
        checkpoint=str(checkpoint),
        output=str(place / "reference"),
        obs_columns=["cell_type", "donor", "sample", TERMS],
        cells_per_partition=60,
    )
    for name, shards, columns in (
        ("index-1", 1, ["cell_type", "donor"]),
        ("index-3", 3, ["cell_type", "donor"]),
        ("index-samples", 2, ["cell_type", TERMS, "donor", "sample"]),
    ):
        scgpt_ray.build_index(
            executor="serial",
            embeddings=str(place / "reference"),
            output=str(place / name),
            shards=shards,
            label_columns=columns,
        )
    return place


def options(place, checkpoint, output="mapped", index=1, **more):
    return {
        "query": str(place / "query.h5ad"),
        "index": str(place / f"index-{index}"),
        "checkpoint": str(checkpoint),
        "output": str(place / output),
        "k": K,
        "cells_per_partition": 60,
        "label_columns": ["cell_type", "donor"],
        "calibrate_by": "none",
        **more,
    }


@pytest.fixture(scope="module")
def mapped(reference, checkpoint):
    return scgpt_ray.map_query(
        executor="serial", **options(reference, checkpoint, truth_column="cell_type", obs_columns=["donor"])
    )


def map_elsewhere(place, checkpoint, output, index=1, **more):
    """Map into another folder, in which the same query is embedded already."""
    if not (place / output).exists():
        shutil.copytree(place / "mapped" / "embeddings", place / output / "embeddings")
    more = {"obs_columns": ["donor", "cell_type"], **more}
    return scgpt_ray.map_query(executor="serial", **options(place, checkpoint, output, index, **more))


def neighbours_by_hand(reference, query, allowed=lambda *_: True):
    """Names of the K nearest reference cells of each query cell that has an embedding."""
    rows = [row for row in read_embeddings(Folder.at(reference / "reference")).to_pylist() if row[EMBEDDING]]
    vectors = np.array([row[EMBEDDING] for row in rows])
    found = {}
    for own in read_embeddings(Folder.at(query / "embeddings")).to_pylist():
        if own[EMBEDDING]:
            scores = np.where([allowed(own, row) for row in rows], vectors @ np.array(own[EMBEDDING]), -np.inf)
            found[own[OBS_ID]] = [(rows[place], scores[place]) for place in np.argsort(-scores, kind="stable")[:K]]
    return found


def vote_by_hand(neighbours, column):
    votes = Counter(row[column] for row, _ in neighbours)
    sums = {label: sum(score for row, score in neighbours if row[column] == label) for label in votes}
    winner = min(votes, key=lambda label: (-votes[label], -sums[label], label))
    return winner, votes[winner] / len(neighbours)


def assert_voted(predictions, neighbours, columns):
    for row in predictions.to_pylist():
        for column in columns:
            if row[OBS_ID] in neighbours:
                label, confidence = vote_by_hand(neighbours[row[OBS_ID]], column)
            else:
                label, confidence = "Unknown", 0
            assert row[column] == label
            assert row[f"{column}_confidence"] == pytest.approx(confidence, abs=1e-6)


def test_every_label_is_the_vote_of_the_nearest(mapped, reference):
    predictions = pq.read_table(reference / "mapped" / "predictions.parquet")
    assert predictions.column_names == [
        "soma_joinid", "obs_id", "donor_query", "cell_type_query",
        *(f"{column}{suffix}" for column in ("cell_type", "donor") for suffix in PLAIN), "neighbor", "score",
    ]  # fmt: skip
    assert predictions.num_rows == 60
    neighbours = neighbours_by_hand(reference, reference / "mapped")
    assert len(neighbours) == 59
    assert_voted(predictions, neighbours, ["cell_type", "donor"])
    by_name = {row[OBS_ID]: row for row in predictions.to_pylist()}
    empty = by_name["cell-077"]
    for column in ("cell_type", "donor"):
        assert {suffix: empty[f"{column}{suffix}"] for suffix in PLAIN} == {
            "": "Unknown", "_confidence": 0.0, "_voted": None, "_runner_up": None, "_runner_up_share": 0.0,
            "_unknown": "no embedding",
        }  # fmt: skip
    assert (empty["neighbor"], empty["score"]) == ([], [])


def test_every_cell_names_its_neighbours(mapped, reference):
    neighbours = neighbours_by_hand(reference, reference / "mapped")
    rows = pq.read_table(reference / "mapped" / "predictions.parquet").to_pylist()
    for row in rows:
        expected = neighbours.get(row[OBS_ID], [])
        assert row["neighbor"] == [cell[JOINID] for cell, _ in expected]
        assert row["score"] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_the_truth_and_the_columns_of_the_query_stay(mapped, reference, files):
    predictions = pq.read_table(reference / "mapped" / "predictions.parquet")
    obs = anndata.read_h5ad(files[1]).obs
    assert predictions["obs_id"].to_pylist() == obs.index.tolist()
    assert predictions["cell_type_query"].to_pylist() == obs["cell_type"].tolist()
    assert predictions["donor_query"].to_pylist() == obs["donor"].tolist()


def assert_scored(scores, truth, voted, sure):
    """Cells of every pair of true and voted label, and what follows from them."""
    pairs, right = Counter(zip(truth, voted, strict=True)), np.array(truth) == np.array(voted)
    names = sorted(set(truth))
    assert scores["confusion"] == {
        name: {label: n for (own, label), n in pairs.items() if own == name} for name in names
    }
    f1 = [2 * pairs[name, name] / (truth.count(name) + voted.count(name)) for name in names]
    assert scores["accuracy"] == right.mean()
    assert scores["macro_f1_true_labels"] == pytest.approx(np.mean(f1))
    assert scores["macro_f1"] == pytest.approx(np.sum(f1) / len({*truth, *voted}))
    assert scores["confidence_right"] == pytest.approx(np.mean(np.array(sure)[right]))
    assert scores["confidence_wrong"] == pytest.approx(np.mean(np.array(sure)[~right]))


def test_the_metrics_are_those_of_a_vote_by_hand(mapped, reference, files):
    truth = anndata.read_h5ad(files[1]).obs["cell_type"]
    neighbours = neighbours_by_hand(reference, reference / "mapped")
    votes = {name: vote_by_hand(neighbours[name], "cell_type") for name in neighbours} | {"cell-077": ("Unknown", 0.0)}
    voted, sure = zip(*(votes[name] for name in truth.index), strict=True)
    metrics = json.loads((reference / "mapped" / "metrics.json").read_bytes())
    assert_scored(metrics["scores"], truth.tolist(), voted, sure)
    accuracy = metrics["scores"]["accuracy"]
    assert metrics["scores"]["majority_accuracy"] == max(truth.value_counts()) / 60 < accuracy < 1
    assert metrics["rejection"]["accepted"] == 59 / 60
    assert metrics["rejection"]["accuracy_accepted"] == pytest.approx(accuracy * 60 / 59)
    assert (metrics["n_cells"], metrics["n_unknown"]) == (mapped.n_cells, mapped.n_unknown) == (60, 1)
    assert metrics["labels"]["cell_type"] == Counter(voted)
    assert mapped.to_dict()["scores"]["accuracy"] == accuracy
    assert "60 cells mapped on cell_type (" in mapped.text()


def test_the_report_needs_nothing_else(mapped, reference):
    page = (reference / "mapped" / "report.html").read_text()
    assert "query.h5ad" in page
    assert "index-1" in page
    assert page.count("<svg xmlns:xlink") == 8, "with the cells, their markers and their genes"
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|@import', page[: page.index("<script>")])
    assert (reference / "mapped" / "umap.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "umap.png" in mapped.artifacts()


def test_the_report_shows_the_cells(mapped, reference):
    from bokeh.document import Document

    page = (reference / "mapped" / "report.html").read_text()
    plots = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])["plots"]
    data = Document.from_json(plots["doc"]).get_model_by_name("cells").data
    assert (len(data["alpha"]), (data["alpha"] == 1).sum()) == (59 + 199, 59), "every cell that has an embedding"
    legends = dict(re.findall(r'aria-label="Legend of (.*?)" hidden>(.*?)</div>', page, re.DOTALL))
    assert list(legends) == [
        "predicted cell_type", "predicted donor", "true cell_type", "right or wrong", "share of the votes",
        "mean score of the neighbours", "why unknown", "obs_id", "donor_query", "n_genes",
    ]  # fmt: skip
    counts = {name: {label: int(cells) for label, cells in re.findall("<span>(.*?)</span><b>(.*?)</b>", legend)}
              for name, legend in legends.items()}  # fmt: skip
    voted = mapped.predictions.filter(pc.is_valid(mapped.predictions["cell_type_voted"]))["cell_type"].to_pylist()
    assert counts["predicted cell_type"] == Counter(voted)
    scores = mapped.evaluation.scores
    assert counts["right or wrong"]["right"] == round(scores.accuracy * scores.n)
    assert set(data["c7"][-59:]) == set(mapped.predictions["obs_id"].to_pylist()) - {"cell-077"}
    assert "1 have no embedding and are not drawn. Faint: 199 cells of the reference" in page
    assert "1 of 60 empty" in page


def test_without_umap_the_report_says_why(mapped, reference, checkpoint, monkeypatch):
    again = options(reference, checkpoint, "without", truth_column="cell_type")
    scgpt_ray.map_query(executor="serial", **again)
    assert (reference / "without" / "umap.png").exists()
    monkeypatch.setitem(sys.modules, "umap", None)
    assert "umap.png" not in scgpt_ray.map_query(executor="serial", **again).artifacts()
    page = (reference / "without" / "report.html").read_text()
    assert "No cells are drawn: UMAP needs a package that is not installed: umap;" in page
    assert not (reference / "without" / "umap.png").exists(), "that of before would mislead"


def test_the_labelled_query_opens_in_scanpy(mapped, reference, files):
    import scanpy

    cells = scanpy.read_h5ad(reference / "mapped" / "query.h5ad")
    predictions = pq.read_table(reference / "mapped" / "predictions.parquet")
    assert cells.obs_names.tolist() == predictions["obs_id"].to_pylist()
    assert cells.obs["predicted_cell_type"].tolist() == predictions["cell_type"].to_pylist()
    assert cells.obs["predicted_donor_confidence"].tolist() == predictions["donor_confidence"].to_pylist()
    absent = cells.obs_names == "cell-077"
    for key in ("X_scGPT", "X_umap"):
        assert np.isnan(cells.obsm[key]).any(axis=1).tolist() == absent.tolist()
    noted = cells.uns["scgpt_ray"]
    assert noted["index"]["place"] == str(reference / "index-1")
    assert noted["model"]["weights"] == mapped.parts.manifest.fingerprint.model["weights"]
    original = anndata.read_h5ad(files[1])
    own = [f"predicted_{column}{part}" for column in ("cell_type", "donor") for part in PLAIN]
    assert list(cells.obs) == [*original.obs, *own]
    assert cells.obs[[*original.obs]].equals(original.obs), "no column of the query is replaced or renamed"
    assert cells.var.equals(original.var)
    assert (cells.X != original.X).nnz == 0


def test_the_query_stays_as_it_is(mapped, reference, files, checkpoint, make_soma, caplog, monkeypatch):
    """Layers, .raw and own coordinates of some of the cells; of a SOMA experiment, what it has."""
    query = anndata.read_h5ad(files[1])
    query.layers["logs"] = query.X.log1p()
    query.raw = query.copy()
    query.obsm["X_umap"] = np.zeros((query.n_obs, 2))
    query.uns["note"] = "mine"
    query.write_h5ad(reference / "full.h5ad")
    monkeypatch.setattr(map_report, "drawn_cells", lambda *_: "not here")
    some = {"obs_filter": "donor == 'd1'", "query": str(reference / "full.h5ad")}
    scgpt_ray.map_query(executor="serial", **options(reference, checkpoint, "full", **some))
    cells = anndata.read_h5ad(reference / "full" / "query.h5ad")
    expected = query[query.obs["donor"] == "d1"]
    assert cells.obs_names.tolist() == expected.obs_names.tolist()
    assert (cells.layers["logs"] != expected.layers["logs"]).nnz == 0
    assert cells.raw.X.sum() == expected.raw.X.sum()
    assert cells.uns["note"] == "mine"
    assert {*cells.obsm} == {"X_umap", "X_scGPT"}

    uri = make_soma(anndata.read_h5ad(files[1]), reference / "soma")
    scgpt_ray.map_query(executor="serial", **options(reference, checkpoint, "of-soma", query=uri))
    cells = anndata.read_h5ad(reference / "of-soma" / "query.h5ad")
    original = anndata.read_h5ad(files[1])
    assert cells.obs_names.tolist() == original.obs_names.tolist()
    assert cells.var_names.tolist() == original.var_names.tolist()
    assert np.array_equal(cells.X.toarray(), original.X.toarray())
    assert cells.obs["sample"].tolist() == original.obs["sample"].tolist()

    monkeypatch.setattr(h5ad, "_WHOLE_BYTES", 1000)
    scgpt_ray.map_query(executor="serial", **options(reference, checkpoint, "full", **some))
    assert not (reference / "full" / "query.h5ad").exists()
    assert "full.h5ad is too large for query.h5ad: the labels are in predictions.parquet" in caplog.text
    every = {"query": str(reference / "full.h5ad")}
    scgpt_ray.map_query(executor="serial", **options(reference, checkpoint, "copied", **every))
    cells = anndata.read_h5ad(reference / "copied" / "query.h5ad")
    assert cells.obs_names.tolist() == query.obs_names.tolist(), "a whole file is copied"
    assert (cells.layers["logs"] != query.layers["logs"]).nnz == 0
    assert {*cells.obsm} == {"X_umap", "X_scGPT"}
    assert cells.uns["note"] == "mine"
    monkeypatch.setattr(h5ad, "_COPIED_BYTES", 1000)
    scgpt_ray.map_query(executor="serial", **options(reference, checkpoint, "copied", **every))
    assert not (reference / "copied" / "query.h5ad").exists(), "that of before would mislead"
    query.obs["predicted_donor"] = "mine"
    query.write_h5ad(reference / "taken.h5ad")
    with pytest.raises(ConfigError, match=r"taken.h5ad: obs has a column predicted_donor; .*rename it"):
        scgpt_ray.map_query(**options(reference, checkpoint, "taken", query=str(reference / "taken.h5ad")))


def test_again_embeds_and_searches_nothing(mapped, reference, checkpoint):
    place = reference / "mapped"
    parts = [*(place / "embeddings" / "parts").iterdir(), *(place / "predictions.parquet").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in parts}
    again = scgpt_ray.map_query(
        executor="serial", **options(reference, checkpoint, truth_column="cell_type", obs_columns=["donor"])
    )
    assert {path: path.stat().st_mtime_ns for path in parts} == before
    assert again.metrics() == mapped.metrics()


def test_a_sharded_index_gives_the_same(mapped, reference, checkpoint):
    sharded = map_elsewhere(reference, checkpoint, "sharded", index=3, truth_column="cell_type", obs_columns=["donor"])
    assert sharded.predictions.equals(mapped.predictions)


SHARED_GENES = [f"GENE{number}" for number in range(1, 60)]


def logs_of(file, names=None):
    """Names of the cells that have counts, their obs, and their logs over the shared genes, by hand."""
    cells = anndata.read_h5ad(file)
    cells.var_names = cells.var.get("feature_name", cells.var_names.to_series()).to_numpy()
    cells = cells[:, SHARED_GENES] if names is None else cells[names, SHARED_GENES]
    counts = cells.X.toarray().astype(np.float64)
    sums = counts.sum(axis=1)
    logs = np.log1p(counts[sums > 0] * (1e4 / sums[sums > 0])[:, None]).astype(np.float32)
    return cells.obs[sums > 0], sparse.csr_matrix(logs)


def test_pca_and_knn_of_the_same_cells_stand_beside(mapped, reference, files):
    obs, reference_logs = logs_of(files[0])
    query_obs, query_logs = logs_of(files[1])
    labels = obs["cell_type"].to_numpy(object)
    said, share = pca_knn(reference_logs, labels, query_logs, k=K, seed=0)
    truth = anndata.read_h5ad(files[1]).obs["cell_type"].to_numpy(object)
    answers = dict(zip(query_obs.index, zip(said, share, strict=True), strict=True))
    names = pq.read_table(reference / "mapped" / "predictions.parquet")["obs_id"].to_pylist()
    assert set(names) - answers.keys() == {"cell-077"}
    all_said, all_share = zip(*(answers.get(name, ("Unknown", 0.0)) for name in names), strict=True)
    expected = evaluate(truth, all_said, {"share": np.array(all_share)}, np.zeros(len(truth), bool), Counter(labels))
    metrics = json.loads((reference / "mapped" / "metrics.json").read_bytes())
    assert list(metrics["comparison"]) == ["embeddings + kNN", BASELINE, "majority class"]
    assert metrics["comparison"][BASELINE] == expected.to_dict()["comparison"][METHOD]
    assert metrics["baseline"] == {"n_reference": 199, "n_allowed": 199, "n_genes": 59}
    assert f"{BASELINE}: on 199 reference cells, 59 shared genes" in mapped.text()
    assert mapped.text().count(BASELINE) == 4, "what is expected of it, and what it gives"
    assert "on 199 reference cells, 59 shared genes" in (reference / "mapped" / "report.html").read_text()


@pytest.fixture
def beside(mapped, reference):
    """Computes the baseline of the mapping that is there, with other settings or another reference."""

    def computed(truth=None, index=None, **more):
        settings = MapSettings.of(options(reference, "unused", truth_column="cell_type", **more))
        there = index or Reference.at(str(reference / "index-samples")).on(SerialExecutor())
        embedded = Folder.at(reference / "mapped" / "embeddings")
        queries = read_embeddings(embedded)
        truth = queries["cell_type"].to_pylist() if truth is None else truth
        cells = there.cell_counts("cell_type", settings.neighbor_filter)
        return baseline.evaluate_baseline(settings, there, "cell_type", cells, embedded, queries, truth)

    return computed


def test_the_baseline_meets_the_same_voters(beside, reference, files):
    obs, reference_logs = logs_of(files[0])
    query_obs, query_logs = logs_of(files[1])
    names = pq.read_table(reference / "mapped" / "predictions.parquet")["obs_id"].to_pylist()
    rows = [names.index(name) for name in query_obs.index]
    met = (obs["sample"] != "s1").to_numpy()
    labels = obs["cell_type"].to_numpy(object)[met]
    found = beside(neighbor_filter="sample != 's1'", exclude_same=["donor"])
    components, reference_NC = fit_components(reference_logs[met], N_COMPONENTS, seed=0)
    for donor in ("d1", "d2"):
        other, own = (obs["donor"] != donor).to_numpy()[met], (query_obs["donor"] == donor).to_numpy()
        said, share = nearest_labels(reference_NC[other], labels[other], components.transform(query_logs[own]), K)
        np.testing.assert_array_equal(found.labels[np.array(rows)[own]], said)
        np.testing.assert_array_equal(found.share[np.array(rows)[own]], share)
    assert (found.n_reference, found.n_allowed) == (met.sum(), met.sum())
    plain = beside(neighbor_filter="sample != 's1'")
    assert (plain.labels[rows] == pca_knn(reference_logs[met], labels, query_logs, k=K, seed=0)[0]).all()
    assert (plain.labels != found.labels).any() or (plain.share != found.share).any()


def test_the_baseline_of_values_as_stored(beside, reference, files, tmp_path, monkeypatch):
    fitted = []

    def fit(values_NG, *arguments, **more):
        fitted.append(values_NG)
        return fit_components(values_NG, *arguments, **more)

    monkeypatch.setattr(baseline, "fit_components", fit)
    values, names = [], pq.read_table(reference / "mapped" / "predictions.parquet")["obs_id"].to_pylist()
    for file in files:
        cells = anndata.read_h5ad(file)
        cells.var_names = cells.var.get("feature_name", cells.var_names.to_series()).to_numpy()
        values.append(cells[cells.X.sum(axis=1) > 0, SHARED_GENES].copy())
    labels = values[0].obs["cell_type"].to_numpy(object)
    said, _ = pca_knn(values[0].X, labels, values[1].X, k=K, seed=0)
    found = beside(baseline_values="stored")
    rows = [names.index(name) for name in values[1].obs_names]
    np.testing.assert_array_equal(found.labels[rows], said)
    assert sorted(fitted[0].data.tolist()) == sorted(values[0].X.data.tolist()), (
        "types lie apart; so see what was fitted"
    )
    moved = shutil.move(files[0], tmp_path / "moved.h5ad")
    try:
        with pytest.raises(InputError, match="no such file or folder"):
            beside(baseline_values="stored")
    finally:
        shutil.move(moved, files[0])


def test_the_baseline_says_nothing_of_cells_without_truth(beside):
    truth = ["B", None, "unknown", *["T"] * 57]
    found, whole = beside(truth=truth), beside()
    assert found.labels[1:3].tolist() == ["Unknown"] * 2
    np.testing.assert_array_equal(found.labels[[0, *range(3, 60)]], whole.labels[[0, *range(3, 60)]])
    with pytest.raises(InputError, match="none of 60 query cells has a true label"):
        beside(truth=[None] * 60)


def test_of_a_large_reference_the_baseline_takes_a_sample_by_label(beside, reference, files, monkeypatch):
    monkeypatch.setattr(baseline, "_MOST_CELLS", 40)
    found = beside(neighbor_filter="cell_type != 'NK' or sample == 's2'")
    obs = logs_of(files[0])[0]
    allowed = int(((obs["cell_type"] != "NK") | (obs["sample"] == "s2")).sum())
    assert found.text() == f"on a sample of 40 of {allowed} reference cells by label, 59 shared genes"
    drawn = []
    for index in ("index-1", "index-samples"):
        there = Reference.at(str(reference / index)).on(SerialExecutor())
        quotas = {"B": 3, "T": 500, "none": 2}
        cells = baseline.draw_cells(there, ["cell_type", "donor"], quotas, "donor == 'd2' or cell_type == 'B'", 4)
        again = baseline.draw_cells(there, ["cell_type", "donor"], quotas, "donor == 'd2' or cell_type == 'B'", 4)
        assert cells.equals(again)
        assert cells.column_names == [JOINID, "cell_type", "donor"]
        kinds = Counter(zip(cells["cell_type"].to_pylist(), cells["donor"].to_pylist(), strict=True))
        assert kinds == {("B", "d1"): 3, ("T", "d2"): obs["cell_type"].eq("T").sum()}
        ids = cells[JOINID].to_pylist()
        assert ids == sorted(set(ids))
        drawn.append(ids)
    assert baseline.draw_cells(there, ["cell_type"], quotas, None, 5)[JOINID].to_pylist() != drawn[1]


def test_why_there_is_no_baseline_is_said(beside, mapped, reference, files, checkpoint, caplog, tmp_path):
    there = Reference.at(str(reference / "index-samples")).on(SerialExecutor())
    state = files[0].stat()
    os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    try:
        found = map_elsewhere(reference, checkpoint, "changed", truth_column="cell_type")
    finally:
        os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    changed = f"mtime_ns: {state.st_mtime_ns + 10**9} against {state.st_mtime_ns}"
    reason = f"{reference / 'reference'}: {files[0]} is not as it was embedded ({changed})"
    metrics = json.loads((reference / "changed" / "metrics.json").read_bytes())
    assert metrics["baseline"] == {"left_out": reason}
    assert list(metrics["comparison"]) == ["embeddings + kNN", "majority class"]
    assert f"{BASELINE}: left out, {reason}" in found.text()
    assert reason in (reference / "changed" / "report.html").read_text()
    assert f"without {BASELINE}: {reason}" in caplog.text
    moved = shutil.move(files[0], tmp_path / "moved.h5ad")
    assert beside().endswith(f"{files[0]}: no such file or folder")
    shutil.move(moved, files[0])
    elsewhere = there.index.replace(embeddings=str(tmp_path))
    assert beside(index=replace(there, index=elsewhere)) == f"{tmp_path}: plan.json, which names the atlas, is missing"
    shutil.copytree(reference / "mapped" / "embeddings", tmp_path / "others")
    others = there.index.replace(embeddings=str(tmp_path / "others"))
    assert (
        beside(index=replace(there, index=others))
        == f"{tmp_path / 'others'} now holds other embeddings than were indexed"
    )
    plan = tmp_path / "others" / "plan.json"
    plan.write_text(plan.read_text().replace(f'"atlas":"{files[1]}"', '"atlas":"s3://bucket/atlas"'))
    assert beside(index=replace(there, index=others)) == f"{tmp_path / 'others'}: s3://bucket/atlas is remote"


@pytest.fixture(scope="module")
def excluded(mapped, reference, checkpoint):
    map_elsewhere(reference, checkpoint, "excluded", index=3, exclude_same=["donor"], label_columns=["cell_type"])
    return reference / "excluded"


def test_no_neighbour_of_the_same_donor_votes(excluded, reference):
    predictions = pq.read_table(excluded / "predictions.parquet")
    assert predictions.column_names[:5] == ["soma_joinid", "obs_id", "donor", "cell_type_query", "cell_type"]
    neighbours = neighbours_by_hand(reference, excluded, lambda own, other: own["donor"] != other["donor"])
    assert_voted(predictions, neighbours, ["cell_type"])
    with_own = neighbours_by_hand(reference, excluded)
    assert any(vote_by_hand(with_own[name], "cell_type") != vote_by_hand(neighbours[name], "cell_type")
               for name in neighbours)  # fmt: skip


def test_without_truth_there_are_no_scores(excluded):
    metrics = json.loads((excluded / "metrics.json").read_bytes())
    assert metrics["scores"] is None
    assert "baseline" not in metrics
    assert "those with the same donor" in (excluded / "report.html").read_text()


def test_as_many_neighbours_as_cells(mapped, reference, checkpoint):
    found = map_elsewhere(reference, checkpoint, "all", k=199)
    assert found.n_unknown == 1
    rows = found.predictions.to_pylist()
    reference_rows = read_embeddings(Folder.at(reference / "reference")).to_pylist()
    most = Counter(row["cell_type"] for row in reference_rows if row[EMBEDDING]).most_common(1)[0][1]
    shares = {round(row["cell_type_confidence"], 6) for row in rows if row["cell_type"] != "Unknown"}
    assert shares == {round(most / sum(row[EMBEDDING] is not None for row in reference_rows), 6)}


def test_only_neighbours_that_a_filter_allows_vote(mapped, reference, checkpoint):
    map_elsewhere(reference, checkpoint, "filtered", index=3, neighbor_filter="cell_type != 'T' and donor == 'd1'")
    predictions = pq.read_table(reference / "filtered" / "predictions.parquet")
    neighbours = neighbours_by_hand(
        reference,
        reference / "filtered",
        lambda _, other: other["cell_type"] != "T" and other["donor"] == "d1",
    )
    assert_voted(predictions, neighbours, ["cell_type"])
    page = (reference / "filtered" / "report.html").read_text()
    assert "cell_type != &#39;T&#39;" in page
    metrics = json.loads((reference / "filtered" / "metrics.json").read_bytes())
    assert metrics["evidence"]["placement"] is None, "distances were measured without the filter"


@pytest.fixture(scope="module")
def calibrated(mapped, reference, checkpoint):
    pytest.importorskip("cellxgene_ontology_guide", reason="the roll-up needs it: pip install 'scgpt-ray[eval]'")
    more = {"label_columns": ["cell_type", TERMS], "target_error": 0.02, "false_rejection": 0.1}
    return map_elsewhere(reference, checkpoint, "calibrated", "samples", **CALIBRATED | more)


def test_calibration_maps_the_reference_onto_its_other_samples(calibrated, reference):
    rows = [row for row in read_embeddings(Folder.at(reference / "reference")).to_pylist() if row[EMBEDDING]]
    vectors = np.array([row[EMBEDDING] for row in rows])
    right = 0
    for own, vector in zip(rows, vectors, strict=True):
        scores = np.where([row["sample"] != own["sample"] for row in rows], vectors @ vector, -np.inf)
        nearest = [(rows[place], scores[place]) for place in np.argsort(-scores, kind="stable")[:K]]
        right += vote_by_hand(nearest, "cell_type")[0] == own["cell_type"]
    told = json.loads((reference / "calibrated" / "calibration.json").read_bytes())
    assert set(told) == {"cell_type", TERMS}
    held_out = told["cell_type"]["held_out"]
    assert (held_out["cells"], held_out["groups"]) == (199, 5)
    assert held_out["accuracy"] == pytest.approx(right / 199)
    assert set(held_out["withheld"]) == {"B", "T", "NK"}
    assert sum(group["right"] for group in held_out["by_group"].values()) == right
    assert {name: group["cells"] for name, group in held_out["by_group"].items()} == Counter(
        row["sample"] for row in rows
    )
    assert sum(label["cells"] for label in held_out["by_label"].values()) == 199
    metrics = json.loads((reference / "calibrated" / "metrics.json").read_bytes())
    alone = {"cells": {}, "share": 0.0, "groups": 5, "labelled": 199}
    assert metrics["calibration"]["cell_type"] == held_out | {"one_group": alone}
    promise = metrics["promises"]["cell_type"]
    assert (promise["target_error"], promise["groups"], promise["trained"]) == (0.02, 5, None)
    assert promise["withdrawn"] == any(position["beyond"] for position in promise["positions"].values())
    assert told["cell_type"]["targets"] == {"error": 0.02, "false_rejection": 0.1}


@pytest.fixture
def calibrating(mapped, reference, checkpoint):
    """Settings, reference, rules and cells of a calibration by sample."""

    def make(**more):
        settings = MapSettings.of(options(reference, checkpoint, "unused", "samples", **CALIBRATED | more))
        there = Reference.at(settings.index).on(SerialExecutor())
        rules = prediction_rules(settings, there.index)
        return settings, there, rules, reference_cells(settings, there, rules)

    return make


def test_every_sample_gives_as_many_cells(calibrating):
    # s0, with a third of its cells, has fewer than a fifth of 100.
    smaller = "sample != 's0' or cell_type == 'B'"
    found = calibrations(*calibrating(calibration_cells=100, neighbor_filter=smaller))["cell_type"]
    cells = {name: group.cells for name, group in found.held_out.by_group.items()}
    assert cells.pop("s0") < 20
    assert max(cells.values()) - min(cells.values()) <= 1
    assert found.held_out.cells == 100


def test_labels_of_one_sample_are_counted_over_the_reference(calibrating, reference, caplog):
    rarer = "cell_type != 'NK' or sample == 's1' and donor == 'd1'"
    found = calibrations(*calibrating(calibration_cells=60, neighbor_filter=rarer))["cell_type"]
    rows = read_embeddings(Folder.at(reference / "reference")).filter(pc.field(EMBEDDING).is_valid()).to_pylist()
    cells = sum((row["cell_type"], row["sample"], row["donor"]) == ("NK", "s1", "d1") for row in rows)
    assert found.one_group.cells == {"NK": cells}
    assert f"one sample alone has, which counts as wrong in held-out groups: NK {cells}" in caplog.text


def test_the_query_is_compared_as_held_out_cells_were(calibrating, reference):
    settings, there, rules, cells = calibrating()
    calibrated = calibrations(settings, there, rules, cells)
    spread, embedded = calibrated["cell_type"].spread, read_embeddings(Folder.at(reference / "reference"))
    # Reference cells as a query: without one of the samples, and so mostly with themselves.
    folder = Folder.at(reference / "reference")
    query = QueryParts(folder, Manifest.read(folder), folder.folder("predictions.parquet"), {})
    whole = SimpleNamespace(rows=np.arange(len(embedded)), sample=embedded)
    found = query_positions(settings, there, rules, cells, calibrated, query, whole)["cell_type"]
    rows = embedded.filter(pc.field(EMBEDDING).is_valid()).to_pylist()
    vectors, samples = np.array([row[EMBEDDING] for row in rows]), np.array([row["sample"] for row in rows])
    differences = []
    for place, cell in enumerate(np.random.default_rng(0).permutation(len(rows))):
        scores = np.where(samples != f"s{place % 5}", vectors @ vectors[cell], -np.inf)
        nearest = [(rows[row], scores[row]) for row in np.argsort(-scores, kind="stable")[:K]]
        differences.append(
            np.mean([score for _, score in nearest]) - spread.nearness[vote_by_hand(nearest, "cell_type")[0]]
        )
    assert found["nearness"].query == pytest.approx(np.mean(differences), abs=1e-6)
    assert (found["nearness"].lowest, found["nearness"].highest) == spread.nearness_range
    assert not found["nearness"].beyond
    none = SimpleNamespace(rows=np.array([5]), sample=embedded.filter(pc.field(EMBEDDING).is_null()))
    assert query_positions(settings, there, rules, cells, calibrated, query, none) == {"cell_type": {}}


def test_a_promise_is_withdrawn_and_optimism_is_reported(calibrating, checkpoint, caplog):
    settings, there, rules, cells = calibrating(target_error=0.5)
    calibrated = calibrations(settings, there, rules, cells)
    trained = replace(read_checkpoint(checkpoint), cell_types=("B", "T", "NK"))
    for position, withdrawn in ((Position(0.5, 0.4, 0.6), False), (Position(0.3, 0.4, 0.6), True)):
        caplog.clear()
        [promise] = _promises(trained, there, calibrated, {"cell_type": {"nearness": position}}).values()
        assert (promise.withdrawn, promise.target_error, promise.groups) == (withdrawn, 0.5, 5)
        assert "names 100% of the reference's labels have" in promise.trained
        [record] = [record for record in caplog.records if record.name == "scgpt_ray.pipelines.map"]
        assert (record.levelname, record.message) == ("WARNING", f"cell_type: {promise.text()}")


@pytest.mark.ray
def test_the_actors_of_a_calibration_end_with_it(local_ray, mapped, reference):
    """On a cluster they hold half of its CPUs, and the query's network would wait for these for ever."""
    import ray

    from scgpt_ray.execution.ray_executor import RayExecutor

    settings = MapSettings.of(options(reference, "unused", "unused", "samples", **CALIBRATED))
    there = Reference.at(settings.index)
    there = Reference(there.folder, there.index, RayExecutor(), actors=1)
    rules = prediction_rules(settings, there.index)
    cells = reference_cells(settings, there, rules)
    assert calibrations(settings, there, rules, cells).keys() == {"cell_type"}

    def searchers():
        return [actor for actor in ray._private.state.actors().values() if actor["ActorClassName"] == "_Group"]

    assert searchers()
    deadline = time.monotonic() + 30
    while alive := [actor for actor in searchers() if actor["State"] != "DEAD"]:
        assert time.monotonic() < deadline, f"they hold their CPUs: {alive}"
        time.sleep(0.1)


def test_a_label_stands_where_the_calibration_accepts_it(calibrated, reference):
    predictions = pq.read_table(reference / "calibrated" / "predictions.parquet")
    neighbours = neighbours_by_hand(reference, reference / "calibrated")
    told = json.loads((reference / "calibrated" / "calibration.json").read_bytes())
    thresholds = Thresholds(**told["cell_type"]["thresholds"])
    reasons = Counter(predictions["cell_type_unknown"].to_pylist())
    assert reasons.keys() == {None, "no embedding", "distance", "confidence"}
    assert reasons == Counter({None: 60 - calibrated.n_unknown, **calibrated.unknown["cell_type"]})
    for row in predictions.to_pylist():
        if row["cell_type_unknown"] == "no embedding":
            continue
        label, share = vote_by_hand(neighbours[row[OBS_ID]], "cell_type")
        assert (row["cell_type_voted"], row["cell_type_confidence"]) == (label, pytest.approx(share))
        assert 0 < row["cell_type_probability"] < 1
        far = np.mean(row["score"]) < thresholds.nearness.get(label, thresholds.nearness_of_others)
        unsure = row["cell_type_probability"] < np.float32(thresholds.probability)
        assert row["cell_type_unknown"] == ("distance" if far else "confidence" if unsure else None)
        assert row["cell_type"] == ("Unknown" if far or unsure else label)


def test_accuracy_is_that_of_the_vote_and_rejection_is_told_apart(calibrated, reference):
    predictions = pq.read_table(reference / "calibrated" / "predictions.parquet")
    truth = predictions["cell_type_query"].to_pylist()
    voted = [label or "Unknown" for label in predictions["cell_type_voted"].to_pylist()]
    sure = predictions["cell_type_probability"].to_numpy()
    metrics = json.loads((reference / "calibrated" / "metrics.json").read_bytes())
    assert_scored(metrics["scores"], truth, voted, sure)
    kept = [own == label for own, label in zip(truth, predictions["cell_type"].to_pylist(), strict=True)
            if label != "Unknown"]  # fmt: skip
    assert metrics["rejection"]["accepted"] == pytest.approx(len(kept) / 60)
    assert metrics["accuracy_accepted"] == metrics["rejection"]["accuracy_accepted"] == pytest.approx(np.mean(kept))
    assert list(metrics["comparison"]) == ["embeddings + kNN", BASELINE, "majority class"]
    assert metrics["selective_accuracy"]["accuracy_at"]["1"] == metrics["scores"]["accuracy"]
    page = (reference / "calibrated" / "report.html").read_text()
    assert page.count("<svg xmlns:xlink") == 11, "markers and a reliability diagram for each calibrated column"
    assert "Probabilities and thresholds were fitted to reference cells" in page


def test_terms_are_rolled_up(calibrated, reference):
    rows = pq.read_table(reference / "calibrated" / "predictions.parquet").to_pylist()
    far = [row for row in rows if row[f"{TERMS}_unknown"] in ("distance", "no embedding")]
    assert {row[f"{TERMS}_rolled_up"] for row in far} == {row[f"{TERMS}_rolled_up_label"] for row in far} == {"Unknown"}
    clear = [row for row in rows if row not in far and row[f"{TERMS}_confidence"] > 0.5]
    assert clear
    assert all(row[f"{TERMS}_rolled_up"] == row[f"{TERMS}_voted"] for row in clear)
    named = {row[f"{TERMS}_rolled_up"]: row[f"{TERMS}_rolled_up_label"] for row in clear}
    assert named["CL:0000084"] == "T cell"
    assert calibrated.unknown_terms == {}


def test_cells_of_a_type_that_the_reference_lacks_are_unknown_by_distance(mapped, reference, checkpoint):
    lacking = {"neighbor_filter": "cell_type != 'NK'", "false_rejection": 0.05}
    found = map_elsewhere(reference, checkpoint, "lacking", "samples", **CALIBRATED | lacking)
    rejection = found.scores.rejection()
    assert found.calibrations["cell_type"].held_out.withheld.keys() == {"B", "T"}
    assert rejection["absent"] == 20
    assert rejection["absent_rejected"] / 20 > 3 * rejection["known_rejected"] / rejection["known"]
    assert set(found.predictions["cell_type_voted"].to_pylist()) == {"B", "T", None}
    more = CALIBRATED | {"calibrate_by": None}
    plain = map_elsewhere(reference, checkpoint, "lacking", "samples", **more)
    assert plain.calibrations == {}
    assert not (reference / "lacking" / "calibration.json").exists(), "that of before would mislead"


@pytest.mark.parametrize("column", ["cell_type", "sample"])
def test_balanced_votes(mapped, reference, checkpoint, column):
    allowed = "sample == 's1' or cell_type == 'B'"
    more = {"label_columns": ["cell_type"], "balance_by": column, "neighbor_filter": allowed}
    found = map_elsewhere(reference, checkpoint, "balanced", "samples", **more)
    rows = [row for row in read_embeddings(Folder.at(reference / "reference")).to_pylist() if row[EMBEDDING]]
    cells = Counter(row[column] for row in rows if row["sample"] == "s1" or row["cell_type"] == "B")
    neighbours = neighbours_by_hand(
        reference, reference / "balanced", lambda _, row: row["sample"] == "s1" or row["cell_type"] == "B"
    )
    differing = 0
    for row in found.predictions.to_pylist():
        if row[OBS_ID] in neighbours:
            votes = Counter()
            for cell, _ in neighbours[row[OBS_ID]]:
                votes[cell["cell_type"]] += 1 / cells[cell[column]]
            assert votes[row["cell_type"]] == pytest.approx(max(votes.values()))
            assert row["cell_type_confidence"] == pytest.approx(max(votes.values()) / votes.total(), abs=1e-6)
            differing += row["cell_type"] != vote_by_hand(neighbours[row[OBS_ID]], "cell_type")[0]
    assert differing > 0, "balance changes some label"


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            {"target_error": 0.001},
            ConfigError,
            r"cell_type: a target error of 0.001; .*even the surest err more; raise --target-error, or leave",
        ),
        ({"calibrate_by": "donor"}, ReferenceSetError, r"cell_type: 199 cells of 2 group\(s\) to calibrate with"),
        (
            {"neighbor_filter": "sample == 's1' or cell_type == 'B'"},
            ReferenceSetError,
            r"cell_type: 2\d% of 9\d labelled cells have a label that one group alone has \((T, NK|NK, T)\)",
        ),
        ({"neighbor_filter": "sample == 's1'"}, ReferenceSetError, r"cells of 1 group\(s\) to calibrate with"),
        (
            {"neighbor_filter": "sample == 's9'"},
            ReferenceSetError,
            r"no cell of .* that may be a neighbour has a cell_t",
        ),
    ],
)
def test_calibrations_that_cannot_be_had(mapped, reference, checkpoint, more, error, message):
    with pytest.raises(error, match=message):
        scgpt_ray.map_query(
            executor="serial", **options(reference, checkpoint, "uncalibrated", "samples", **CALIBRATED | more)
        )
    assert not (reference / "uncalibrated" / "embeddings" / "manifest.json").exists(), (
        "told before anything is embedded"
    )


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            {"label_columns": ["cell_type", "age"]},
            ConfigError,
            r"keeps no column age; expected one of cell_type, donor",
        ),
        ({"exclude_same": ["donor", "batch"]}, ConfigError, r"keeps no column batch; .*; build the index with --label"),
        ({"balance_by": "batch_key"}, ConfigError, r"keeps no column batch_key; expected one of cell_type, donor"),
        ({"calibrate_by": "sample"}, ConfigError, r"keeps no column sample; expected one of cell_type, donor"),
        ({"k": 500}, ConfigError, r"--k 500: .*index-1 holds 199 cells; .*; lower --k"),
        ({"neighbor_filter": "age > 3"}, ConfigError, r"--neighbor-filter 'age > 3': no column age; .*--label-columns"),
        ({"truth_column": "n_genes"}, ConfigError, r"n_genes would clash with an output column"),
        ({"truth_column": "absent"}, AtlasError, r"obs has no column absent"),
        (
            {"obs_columns": ["cell_type", "cell_type_query"]},
            ConfigError,
            r"two columns of the query would be called cell_type_query; .*; remove one of them from --obs-columns",
        ),
        ({"index": "reference"}, ReferenceSetError, r"reference has no index.json; .*; give its path to --index"),
    ],
)
def test_requests_that_cannot_be_met(reference, checkpoint, more, error, message):
    if "index" in more:
        more = {"index": str(reference / more["index"])}
    with pytest.raises(error, match=message):
        scgpt_ray.map_query(executor="serial", **options(reference, checkpoint, "refused") | more)
    assert not (reference / "refused").exists()


def test_another_checkpoint_is_refused(reference, blood, tmp_path):
    from scgpt_ray.network.checkpoint import random_checkpoint

    genes = [f"GENE{number}" for number in range(60)]
    size = {"embsize": 32, "nheads": 2, "d_hid": 32, "nlayers": 2}
    for name, vocabulary, seed, differing in (
        ("weights", genes, 1, "weights"),
        ("vocabulary", genes[::-1], 0, "vocabulary"),
    ):
        random_checkpoint(tmp_path / name, vocabulary, seed=seed, **size)
        with pytest.raises(
            ReferenceSetError, match=rf"{name} and .*index-1 differ in the model \({differing}: .*--checkpoint"
        ):
            scgpt_ray.map_query(executor="serial", **options(reference, tmp_path / name, "refused"))
    assert not (reference / "refused").exists()


def of_precision(reference, precision):
    """The index as if its embeddings had been made in another precision."""
    shutil.copytree(reference / "index-1", reference / f"index-{precision}")
    path = reference / f"index-{precision}" / "index.json"
    description = json.loads(path.read_text())
    description["fingerprint"]["model"]["precision"] = precision
    path.write_text(json.dumps(description))


def test_an_index_made_on_gpus_serves_a_query_on_cpus(mapped, reference, checkpoint, caplog):
    """float16 cannot be computed here: the query is embedded in float32, which is said and kept in its manifest."""
    of_precision(reference, "float16")
    more = {"truth_column": "cell_type", "obs_columns": ["donor"]}
    found = scgpt_ray.map_query(executor="serial", **options(reference, checkpoint, "on-cpus", "float16", **more))
    assert "the query is embedded in float32, the reference was in float16" in caplog.text
    manifest = json.loads((reference / "on-cpus" / "embeddings" / "manifest.json").read_text())
    assert manifest["fingerprint"]["model"]["precision"] == "float32"
    assert found.predictions.equals(mapped.predictions)
    with pytest.raises(ConfigError, match="float16 was asked for on a CPU"):
        scgpt_ray.map_query(
            executor="serial", **options(reference, checkpoint, "refused", "float16", precision="float16")
        )


def test_a_query_in_the_precision_of_its_index_needs_no_words(mapped, reference, checkpoint, caplog):
    scgpt_ray.map_query(
        executor="serial", **options(reference, checkpoint, truth_column="cell_type", obs_columns=["donor"])
    )
    assert "the query is embedded in" not in caplog.text


def test_a_query_without_known_truth_is_refused(mapped, reference, checkpoint):
    cells = anndata.read_h5ad(reference / "query.h5ad")[:10].copy()
    cells.obs["truth"] = "unknown"
    cells.write_h5ad(reference / "blind.h5ad")
    settings = options(reference, checkpoint, "blind", query=str(reference / "blind.h5ad"), truth_column="truth")
    with pytest.raises(InputError, match="none of 10 query cells has a true label"):
        scgpt_ray.map_query(executor="serial", **settings)
    assert not (reference / "blind").exists(), "nothing was embedded"


def test_the_index_of_the_tests_is_sound(mapped, reference):
    for shards in (1, 3):
        assert scgpt_ray.validate(index=str(reference / f"index-{shards}")) == []
    settings = MapSettings(**options(reference, "unused"))
    assert settings.k == K


def test_what_the_index_decides_and_truth_in_other_words(mapped, reference, checkpoint, tmp_path):
    shutil.copytree(reference / "mapped" / "embeddings", reference / "defaults" / "embeddings")
    given = options(reference, checkpoint, "defaults", "samples", truth_column="donor", obs_columns=["cell_type"])
    given |= {"checkpoint": None, "label_columns": [], "calibrate_by": "auto", "obs_columns": ["donor", "cell_type"]}
    found = scgpt_ray.map_query(executor="serial", **given)
    assert list(found.labels) == ["cell_type", TERMS], "neither donor nor sample is a label"
    assert found.calibrations.keys() == {"cell_type", TERMS}, "by sample, whose values share their labels"
    assert found.evaluation is None
    assert found.to_dict()["scores"] is None
    assert (
        "warning: not evaluated: 0% of the cells have a true label that the reference has. True labels: d"
        in found.text()
    )
    page = (reference / "defaults" / "report.html").read_text()
    assert "not evaluated: 0% of the cells" in page
    assert [f"Genes that mark each {column} in" in page for column in ("cell_type", TERMS)] == [True, True]
    markers = json.loads((reference / "defaults" / "metrics.json").read_bytes())["evidence"]["markers"]
    assert list(markers[TERMS]) == [label for label in found.labels[TERMS] if label != "Unknown"]
    by_term = {"B": "CL:0000236", "T": "CL:0000084", "NK": "CL:0000623"}
    assert {by_term[label]: said["genes"] for label, said in markers["cell_type"].items()} == {
        term: said["genes"] for term, said in markers[TERMS].items()
    }, "both columns name the same cells"
    (tmp_path / "names.tsv").write_text("d1\tB\nd2\tT\n")
    again = scgpt_ray.map_query(executor="serial", **given, truth_map=str(tmp_path / "names.tsv"))
    truth = [{"d1": "B", "d2": "T"}[donor] for donor in again.predictions["donor"].to_pylist()]
    voted = [label or "Unknown" for label in again.predictions["cell_type_voted"].to_pylist()]
    assert again.scores.accuracy == np.mean(np.array(truth) == np.array(voted))
    assert again.predictions.equals(found.predictions)


def test_what_speaks_for_the_labels_is_written(mapped, reference):
    evidence = json.loads((reference / "mapped" / "metrics.json").read_bytes())["evidence"]
    expected = json.loads((reference / "index-1" / "fitness.json").read_bytes())["columns"]
    assert evidence["fitness"]["cell_type"].items() >= expected["cell_type"].items()
    assert evidence["fitness"]["donor"] is None, "it was named, but is no label"
    assert mapped.text().startswith("cell_type: expected on new cells: accuracy ")
    markers = evidence["markers"]
    assert set(markers["cell_type"]) == set(mapped.labels["cell_type"]) - {"Unknown"}
    assert not any(marked["absent"] for marked in markers["cell_type"].values())
    assert markers["donor"] == "the index did not take donor for a column of labels"
    assert evidence["placement"]["held_out"] == "random fifths"
    assert mapped.n_flagged == round(evidence["placement"]["far"] * 59)


def test_of_a_large_query_the_report_shows_a_sample(mapped, reference, checkpoint, monkeypatch):
    monkeypatch.setattr(overview, "SAMPLE_CELLS", 30)
    found = map_elsewhere(reference, checkpoint, "sampled", truth_column="cell_type")
    assert found.predictions.equals(mapped.predictions)
    whole, sampled = mapped.metrics(), found.metrics()
    assert {name for name in whole if sampled[name] != whole[name]} - {"output"} == {
        "sample", "scores", "accuracy_accepted", "rejection", "comparison", "selective_accuracy", "reliability",
        "evidence",
    }  # fmt: skip
    assert sampled["evidence"]["placement"] == whole["evidence"]["placement"]
    rows = found.overview.rows
    predictions = mapped.predictions.take(rows)
    voted = [label or "Unknown" for label in predictions["cell_type_voted"].to_pylist()]
    assert_scored(sampled["scores"], predictions["cell_type_query"].to_pylist(), voted,
                  predictions["cell_type_confidence"].to_pylist())  # fmt: skip
    assert "of a sample of 30 query cells" in (reference / "sampled" / "report.html").read_text()
    cells = anndata.read_h5ad(reference / "sampled" / "query.h5ad")
    assert cells.obs["predicted_cell_type"].tolist() == mapped.predictions["cell_type"].to_pylist()
    has_place = ~np.isnan(cells.obsm["X_umap"][:, 0])
    assert np.flatnonzero(has_place).tolist() == [row for row in rows if cells.obs_names[row] != "cell-077"]


def test_reference_cells_whose_label_says_unknown_are_as_those_without(blood, checkpoint, tmp_path, monkeypatch):
    """Those whose text is one of `NO_LABEL` neither vote, nor are they a label in the examination or a baseline."""
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed: it compiles for long
    cells, hidden = blood.copy(), np.arange(260) % 5 < 2
    kinds = cells.obs["cell_type"].to_numpy(object)
    cells.obs["none"] = np.where(hidden, None, kinds)
    cells.obs["named"] = np.where(hidden, np.resize(np.array(["unknown", "nan", "", " None "], object), 260), kinds)
    for name, rows in (("reference", slice(200)), ("query", slice(200, None))):
        cells[rows].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    serial = {"executor": "serial", "checkpoint": str(checkpoint)}
    reference, index = str(tmp_path / "reference"), str(tmp_path / "index")
    scgpt_ray.embed(atlas=f"{reference}.h5ad", output=reference, obs_columns=["none", "named", "donor"], **serial)
    scgpt_ray.build_index(executor="serial", embeddings=reference, output=index, label_columns=["none", "named"])
    examined = json.loads((tmp_path / "index" / "fitness.json").read_bytes())["columns"]
    assert examined["named"] == examined["none"]
    found = {}
    for column in ("none", "named"):
        output = tmp_path / f"mapped-{column}"
        options = {"query": str(tmp_path / "query.h5ad"), "index": index, "output": str(output), "k": K}
        scgpt_ray.map_query(**options, **serial, label_columns=[column], truth_column="cell_type")
        metrics = json.loads((output / "metrics.json").read_bytes())
        labels = pq.read_table(output / "predictions.parquet")[column].to_pylist()
        found[column] = labels, metrics["scores"], metrics["comparison"], metrics["baseline"]
    assert found["named"] == found["none"]
    assert set(found["none"][0]) == {"B", "T", "NK"}
