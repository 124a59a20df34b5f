"""Mapping, from an .h5ad query to labels and a report, against a vote by hand."""

import json
import re
from collections import Counter

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest

import scgpt_ray
from scgpt_ray.config import MapSettings
from scgpt_ray.errors import AtlasError, ConfigError, InputError, ReferenceSetError
from scgpt_ray.evaluate.labels import score_labels
from scgpt_ray.flows.mapped import own_name
from scgpt_ray.folder import Folder
from scgpt_ray.schema import EMBEDDING, OBS_ID
from scgpt_ray.store.export import read_embeddings

pytestmark = pytest.mark.ray
K = 7


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("map")


@pytest.fixture(scope="module")
def files(blood, place):
    """200 reference cells, one of them (5) empty; 60 query cells, of which cell-077 is empty."""
    order = np.argsort([number % 4 == 1 for number in range(260)], kind="stable")
    cells = blood[order].copy()
    cells[:200].copy().write_h5ad(place / "reference.h5ad")
    assert {"cell-005", "cell-077"} <= set(cells.obs_names)
    cells[200:].copy().write_h5ad(place / "query.h5ad")
    return place / "reference.h5ad", place / "query.h5ad"


@pytest.fixture(scope="module")
def reference(local_ray, files, checkpoint, place):
    scgpt_ray.embed(
        atlas=str(files[0]),
        checkpoint=str(checkpoint),
        output=str(place / "reference"),
        obs_columns=["cell_type", "donor"],
        cells_per_partition=60,
    )
    for shards in (1, 3):
        scgpt_ray.build_index(embeddings=str(place / "reference"), output=str(place / f"index-{shards}"), shards=shards)
    return place


def options(place, checkpoint, output="mapped", shards=1, **more):
    return {
        "query": str(place / "query.h5ad"),
        "index": str(place / f"index-{shards}"),
        "checkpoint": str(checkpoint),
        "output": str(place / output),
        "k": K,
        "cells_per_partition": 60,
        **more,
    }


@pytest.fixture(scope="module")
def mapped(reference, checkpoint):
    return scgpt_ray.map_query(**options(reference, checkpoint, truth_column="cell_type", obs_columns=["donor"]))


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
        "cell_type", "cell_type_confidence", "donor", "donor_confidence",
    ]  # fmt: skip
    assert predictions.num_rows == 60
    neighbours = neighbours_by_hand(reference, reference / "mapped")
    assert len(neighbours) == 59
    assert_voted(predictions, neighbours, ["cell_type", "donor"])
    by_name = {row[OBS_ID]: row for row in predictions.to_pylist()}
    empty = by_name["cell-077"]
    assert (empty["cell_type"], empty["cell_type_confidence"], empty["donor"]) == ("Unknown", 0.0, "Unknown")


def test_the_truth_and_the_columns_of_the_query_stay(mapped, reference, files):
    predictions = pq.read_table(reference / "mapped" / "predictions.parquet")
    obs = anndata.read_h5ad(files[1]).obs
    assert predictions["obs_id"].to_pylist() == obs.index.tolist()
    assert predictions["cell_type_query"].to_pylist() == obs["cell_type"].tolist()
    assert predictions["donor_query"].to_pylist() == obs["donor"].tolist()


def test_the_metrics_judge_the_predictions(mapped, reference):
    predictions = pq.read_table(reference / "mapped" / "predictions.parquet")
    expected = score_labels(
        predictions["cell_type_query"].to_pylist(),
        predictions["cell_type"].to_pylist(),
        predictions["cell_type_confidence"].to_numpy(),
        {"B", "T", "NK"},
    )
    metrics = json.loads((reference / "mapped" / "metrics.json").read_bytes())
    assert metrics["scores"] == expected.to_dict()
    assert (metrics["n_cells"], metrics["n_unknown"]) == (mapped.n_cells, mapped.n_unknown) == (60, 1)
    assert sum(metrics["labels"]["cell_type"].values()) == 60
    assert metrics["labels"]["cell_type"] == Counter(predictions["cell_type"].to_pylist())
    assert mapped.to_dict()["scores"]["accuracy"] == expected.accuracy
    assert expected.accuracy > expected.majority_accuracy
    assert "60 cells mapped on cell_type (" in mapped.text()


def test_the_report_needs_nothing_else(mapped, reference):
    page = (reference / "mapped" / "report.html").read_text()
    assert "query.h5ad" in page
    assert "index-1" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|@import|<script', page)


def test_the_labelled_query_opens_in_scanpy(mapped, reference):
    import scanpy

    cells = scanpy.read_h5ad(reference / "mapped" / "query.h5ad")
    predictions = pq.read_table(reference / "mapped" / "predictions.parquet")
    assert cells.obs_names.tolist() == predictions["obs_id"].to_pylist()
    assert cells.obs["cell_type"].tolist() == predictions["cell_type"].to_pylist()
    assert np.isnan(cells.obsm["X_scGPT"]).any(axis=1).sum() == 1
    assert list(cells.obs) == [
        "donor_query", "cell_type_query", "cell_type", "cell_type_confidence", "donor", "donor_confidence",
        "soma_joinid", "n_genes",
    ]  # fmt: skip


def test_again_embeds_nothing(mapped, reference, checkpoint):
    parts = reference / "mapped" / "embeddings" / "parts"
    before = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    predictions = (reference / "mapped" / "predictions.parquet").read_bytes()
    again = scgpt_ray.map_query(**options(reference, checkpoint, truth_column="cell_type", obs_columns=["donor"]))
    assert {path.name: path.stat().st_mtime_ns for path in parts.iterdir()} == before
    assert (reference / "mapped" / "predictions.parquet").read_bytes() == predictions
    assert again.metrics() == mapped.metrics()


def test_a_sharded_index_gives_the_same(mapped, reference, checkpoint):
    predictions = pq.read_table(reference / "mapped" / "predictions.parquet")
    more = {"truth_column": "cell_type", "obs_columns": ["donor"]}
    scgpt_ray.map_query(**options(reference, checkpoint, shards=3, **more))
    assert pq.read_table(reference / "mapped" / "predictions.parquet").equals(predictions)


@pytest.fixture(scope="module")
def excluded(mapped, reference, checkpoint):
    scgpt_ray.map_query(
        **options(reference, checkpoint, "excluded", shards=3, exclude_same="donor", label_columns=["cell_type"])
    )
    return reference / "excluded"


def test_no_neighbour_of_the_same_donor_votes(excluded, reference):
    predictions = pq.read_table(excluded / "predictions.parquet")
    assert predictions.column_names == ["soma_joinid", "obs_id", "donor", "cell_type", "cell_type_confidence"]
    neighbours = neighbours_by_hand(reference, excluded, lambda own, other: own["donor"] != other["donor"])
    assert_voted(predictions, neighbours, ["cell_type"])
    with_own = neighbours_by_hand(reference, excluded)
    assert any(vote_by_hand(with_own[name], "cell_type") != vote_by_hand(neighbours[name], "cell_type")
               for name in neighbours)  # fmt: skip


def test_without_truth_there_are_no_scores(excluded):
    metrics = json.loads((excluded / "metrics.json").read_bytes())
    assert metrics["scores"] is None
    assert "those with the same donor" in (excluded / "report.html").read_text()


def test_more_neighbours_than_cells(mapped, reference, checkpoint):
    settings = options(reference, checkpoint, k=500, truth_column="cell_type", obs_columns=["donor"])
    assert scgpt_ray.map_query(**settings | {"output": str(reference / "mapped")}).n_unknown == 1
    rows = pq.read_table(reference / "mapped" / "predictions.parquet").to_pylist()
    reference_rows = read_embeddings(Folder.at(reference / "reference")).to_pylist()
    most = Counter(row["cell_type"] for row in reference_rows if row[EMBEDDING]).most_common(1)[0][1]
    shares = {round(row["cell_type_confidence"], 6) for row in rows if row["cell_type"] != "Unknown"}
    assert shares == {round(most / sum(row[EMBEDDING] is not None for row in reference_rows), 6)}


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            {"label_columns": ["cell_type", "age"]},
            ConfigError,
            r"keeps no column age; expected one of cell_type, donor",
        ),
        ({"exclude_same": "batch"}, ConfigError, r"keeps no column batch; .*; build the index with --label-columns"),
        ({"truth_column": "n_genes"}, ConfigError, r"n_genes would clash with an output column"),
        ({"truth_column": "absent"}, AtlasError, r"obs has no column absent"),
        (
            {"obs_columns": ["cell_type", "cell_type_query"]},
            ConfigError,
            r"two columns of the query would be called cell_type_query; .*; take one of them out of --obs-columns",
        ),
        ({"index": "reference"}, ReferenceSetError, r"reference has no index.json; .*; give its path to --index"),
    ],
)
def test_requests_that_cannot_be_met(reference, checkpoint, more, error, message):
    if "index" in more:
        more = {"index": str(reference / more["index"])}
    with pytest.raises(error, match=message):
        scgpt_ray.map_query(**options(reference, checkpoint, "refused") | more)
    assert not (reference / "refused").exists()


def test_another_checkpoint_is_refused(reference, blood, tmp_path):
    from scgpt_ray.model.checkpoint import random_checkpoint

    genes = [f"GENE{number}" for number in range(60)]
    size = {"embsize": 32, "nheads": 2, "d_hid": 32, "nlayers": 2}
    for name, vocabulary, seed, differing in (
        ("weights", genes, 1, "weights"),
        ("vocabulary", genes[::-1], 0, "vocabulary"),
    ):
        random_checkpoint(tmp_path / name, vocabulary, seed=seed, **size)
        with pytest.raises(ReferenceSetError, match=rf"{name} and .*index-1 differ in {differing}; .*--checkpoint"):
            scgpt_ray.map_query(**options(reference, tmp_path / name, "refused"))
    assert not (reference / "refused").exists()


def test_a_query_without_known_truth_is_refused(mapped, reference, checkpoint):
    cells = anndata.read_h5ad(reference / "query.h5ad")[:10].copy()
    cells.obs["truth"] = "unknown"
    cells.write_h5ad(reference / "blind.h5ad")
    settings = options(reference, checkpoint, "blind", query=str(reference / "blind.h5ad"), truth_column="truth")
    with pytest.raises(InputError, match="none of 10 query cells has a true label"):
        scgpt_ray.map_query(**settings)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("donor", "donor"),
        ("cell_type", "cell_type_query"),
        ("cell_type_confidence", "cell_type_confidence_query"),
        ("cell_type_query", "cell_type_query"),
    ],
)
def test_names_of_query_columns(column, name):
    assert own_name(column, ["cell_type"]) == name


def test_the_index_of_the_tests_is_sound(mapped, reference):
    for shards in (1, 3):
        assert scgpt_ray.validate(index=str(reference / f"index-{shards}")) == []
    settings = MapSettings(**options(reference, "unused"))
    assert settings.k == K
