"""The accuracy that an index reports for its held-out cells: planted cases."""

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import sparse

import scgpt_ray
from scgpt_ray.errors import ConfigError
from scgpt_ray.index.search import NONE
from scgpt_ray.pipelines.fitness import _folds, _of_other_folds
from scgpt_ray.records import RANDOM_FIFTHS, Agreement, Fitness, LabelFitness
from scgpt_ray.storage import Folder

GENES = [f"GENE{number}" for number in range(60)]
N = 240


@pytest.fixture(scope="module")
def embedded(checkpoint, tmp_path_factory):
    """Cells whose counts are those of their type (`kind`), or of their type in their donor alone (`local`)."""
    place, random = tmp_path_factory.mktemp("fitness"), np.random.default_rng(2)
    kind, donor = np.arange(N) % 3, np.arange(N) // 3 % 4
    local = np.array([random.permutation(3) for _ in range(4)])[donor, kind]
    rates = random.gamma(0.4, 3.0, (3, 4, 60)) * (1 + 9 * np.eye(3)[:, None, np.arange(60) % 3])
    counts = random.poisson(rates[kind, donor]).astype(np.float32)
    obs = pd.DataFrame({
        "kind": np.array(["B", "T", "NK"], object)[kind],
        "local": np.array(["x", "y", "z"], object)[local],
        "donor": [f"d{number}" for number in donor],
        "age": random.random(N),
        "name": [f"n{number}" for number in range(N)],
        "same": "one",
    })  # fmt: skip
    obs.index = [f"cell-{number}" for number in range(N)]
    var = pd.DataFrame({"feature_name": GENES}, index=GENES)
    anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var).write_h5ad(place / "cells.h5ad")
    scgpt_ray.embed(
        executor="serial", atlas=str(place / "cells.h5ad"), checkpoint=str(checkpoint), output=str(place / "run"),
        obs_columns=list(obs),
    )  # fmt: skip
    return place


def examined(place, name, **options):
    scgpt_ray.build_index(executor="serial", embeddings=str(place / "run"), output=str(place / name), **options)
    return Fitness.read(Folder.at(place / name))


@pytest.fixture(scope="module")
def by_donor(embedded):
    return examined(embedded, "donors")


def test_only_columns_of_labels_are_examined(by_donor):
    assert list(by_donor.columns) == ["kind", "local"], "no donor, no number, no name of each cell, no constant"
    assert by_donor.calibrate_by == "donor"
    assert (by_donor.distances.held_out, len(by_donor.distances.far)) == ("donor", 30)
    assert list(by_donor.distances.median) == sorted(by_donor.distances.median)


def test_what_holds_within_a_donor_alone_is_not_expected_of_new_cells(by_donor, embedded):
    kind, local = by_donor.columns.values()
    assert (kind.held_out, kind.cells, kind.labels) == ("donor", N, 3)
    assert kind.baseline.accuracy > 0.9, "PCA + kNN of these counts"
    assert kind.verdict == "unfit", "the weights are random"
    assert kind.baseline_cells == f"on {N} reference cells, 60 genes"
    assert local.baseline.accuracy < 0.6
    fifths = examined(embedded, "fifths", label_columns=["local"])
    within = fifths.columns["local"]
    assert (within.held_out, within.baseline.accuracy > 0.9, fifths.calibrate_by) == (RANDOM_FIFTHS, True, None)
    assert "random fifths held out, so that a new batch may do worse" in within.text()
    assert fifths.distances.far[0] < by_donor.distances.far[0]


def test_a_named_column_is_held_out(embedded):
    found = examined(embedded, "named", label_columns=["kind", "local"], held_out_column="local")
    assert found.columns["kind"].held_out == "local"
    assert found.columns["local"].held_out == RANDOM_FIFTHS
    with pytest.raises(ConfigError, match=r"--held-out-column donor; expected a column that is stored .* \(kind\)"):
        examined(embedded, "absent", label_columns=["kind"], held_out_column="donor")


def test_markers_are_kept(by_donor, embedded):
    table = pq.read_table(embedded / "donors" / "markers.parquet")
    assert set(table["column"].to_pylist()) == {"kind", "local"}
    assert set(table["gene"].drop_null().to_pylist()) <= set(GENES)


def test_without_counts_it_is_said(make_embeddings, tmp_path):
    source = make_embeddings(tmp_path / "run", n_cells=100)
    scgpt_ray.build_index(executor="serial", embeddings=source.uri, output=str(tmp_path / "index"))
    found = Fitness.read(Folder.at(tmp_path / "index"))
    assert list(found.columns) == ["kind"]
    assert found.columns["kind"].baseline is None
    assert "/atlas: no such file or folder" in found.columns["kind"].text()
    assert pq.read_table(tmp_path / "index" / "markers.parquet").num_rows == 0


@pytest.mark.slow
def test_the_demo_is_fit_and_random_weights_are_not(demo_folder, tmp_path):
    fit = Fitness.read(Folder.at(demo_folder / "demo" / "index")).columns["cell_type"]
    assert fit.verdict != "unfit"
    scgpt_ray.build_index(
        executor="serial", embeddings=str(demo_folder / "demo" / "untrained" / "embeddings"),
        output=str(tmp_path / "index"), label_columns=["cell_type"],
    )  # fmt: skip
    unfit = Fitness.read(Folder.at(tmp_path / "index")).columns["cell_type"]
    assert unfit.accuracy < fit.accuracy
    assert unfit.verdict == "unfit"
    assert "this checkpoint does not tell these labels apart" in unfit.text()


def test_random_fifths_hold_a_fifth_each_and_nothing_of_ones_own():
    ids = np.arange(10_000)
    assert np.abs(np.bincount(_folds(ids)) / len(ids) - 0.2).max() < 0.02
    assert np.bincount(_folds(ids[::3])).min() > 500, "not in step with the order of cells"
    found = np.array([[4, 7, NONE], [1, 2, 3]]), np.array([[0.9, 0.8, -np.inf], [0.7, 0.6, 0.5]], np.float32)
    own = np.array([4, 9])
    kept, scores = _of_other_folds(found, own)
    for row in range(2):
        expected = [n for n in found[0][row] if n != NONE and _folds(np.array([n])) != _folds(own[row : row + 1])]
        assert kept[row].tolist() == expected + [NONE] * (3 - len(expected))
        assert np.isfinite(scores[row]).sum() == len(expected)


def fitness(accuracy, majority, baseline=None):
    return LabelFitness(100, 3, "donor", 0.0, accuracy, 0.5, majority, baseline, "on 100 reference cells, 9 genes")


@pytest.mark.parametrize(
    ("accuracy", "majority", "baseline", "verdict", "said"),
    [
        (0.36, 0.38, 0.99, "unfit", "does not tell these labels apart"),
        (0.36, 0.38, None, "unfit", "does not tell these labels apart"),
        (0.60, 0.38, 0.95, "unfit", "does not tell these labels apart"),
        (0.70, 0.38, 0.95, "behind", "PCA + kNN tells these labels apart better"),
        (0.90, 0.38, 0.96, "behind", "PCA + kNN tells these labels apart better"),
        (0.90, 0.38, 0.92, "fit", "no baseline is clearly better"),
        (0.90, 0.38, None, "fit", "better than the most frequent label"),
    ],
)
def test_verdicts(accuracy, majority, baseline, verdict, said):
    def against(other):
        return Agreement(other, 0.5, max(0, round(100 * (other - accuracy))), max(0, round(100 * (accuracy - other))))

    found = fitness(accuracy, against(majority), baseline and against(baseline))
    assert found.verdict == verdict
    assert said in found.text()
    assert found.text().startswith(f"expected on new cells: accuracy {accuracy:.2f}, macro-F1 0.50; ")


def test_a_difference_that_chance_explains_is_none():
    assert not Agreement(0.9, 0.9, 20, 10).is_ahead
    assert Agreement(0.9, 0.9, 25, 9).is_ahead


def test_the_record_is_read_as_it_was_written(by_donor):
    assert Fitness.from_json(by_donor.to_json(), "here") == by_donor
