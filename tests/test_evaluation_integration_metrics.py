"""Integration metrics: against numbers of scib, scib-metrics called directly, and where the answer is known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scgpt_ray.errors import ConfigError, InputError
from scgpt_ray.evaluation.integration.metrics import METRICS, compare_embeddings
from scgpt_ray.evaluation.integration.scib import _COMPUTE, EvaluatedCells, _undefined
from scgpt_ray.evaluation.neighbors import groups_of, nearest, with_self
from tests.scib_golden import golden_cases

for package in ("scib_metrics", "leidenalg"):
    pytest.importorskip(package, reason=f"needs {package}: pip install 'scgpt-ray[eval]'")
scib = sys.modules["scib_metrics"]

GOLDEN = json.loads((Path(__file__).parent / "scib_golden.json").read_text())["cases"]

# JAX compiles for every shape and number of groups, which takes seconds: nearly all cases share theirs.
N, D = 360, 8


def cells(n_labels=3, n_keys=2, shift=0.0, noise=0.05, n=N):
    """Labels around corners of a simplex, batch keys moved by `shift` along an axis of their own."""
    random = np.random.default_rng(n_labels * 10 + n_keys)
    label_N, key_N = np.arange(n) % n_labels, np.arange(n) // n_labels % n_keys
    vectors = np.eye(D)[label_N] + shift * key_N[:, None] * np.eye(D)[D - 1] + noise * random.standard_normal((n, D))
    labels, keys = np.array(["B", "NK", "T", "DC"])[label_N], np.array([f"donor {key}" for key in range(n_keys)])[key_N]
    return vectors.astype(np.float32), labels, keys


def scores_of(vectors, labels, keys, **options):
    (scores,) = compare_embeddings({"mine": vectors}, labels, keys, seed=0, **options).scores
    return scores


@pytest.fixture(scope="module")
def overlapping():
    return cells(shift=0.5, noise=0.45)


@pytest.fixture(scope="module")
def scores(overlapping):
    return scores_of(*overlapping)


def direct_neighbors(vectors, k):
    """Neighbours by the square of all distances, the cell itself first."""
    distances = np.linalg.norm(vectors[:, None].astype(float) - vectors[None], axis=-1)
    places = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return scib.nearest_neighbors.NeighborsResults(
        indices=places, distances=np.take_along_axis(distances, places, axis=1).astype(np.float32)
    )


def test_agreement_with_scib_metrics_called_directly(overlapping, scores):
    vectors, labels, keys = overlapping
    near = direct_neighbors(vectors, 90)
    expected = {
        "asw_label": scib.silhouette_label(vectors, labels),
        "asw_batch": scib.silhouette_batch(vectors, labels, keys),
        "clisi": scib.clisi_knn(near, labels),
        "ilisi": scib.ilisi_knn(near, keys),
        "pcr": scib.utils.principal_component_regression(vectors, keys, categorical=True),
    }
    of_labels = []
    for label in np.unique(labels):
        own, own_keys = vectors[labels == label], keys[labels == label]
        # A quarter of the 60 cells of a batch key, and the cell itself.
        of_labels.append(scib.kbet(direct_neighbors(own, 16), own_keys)[0])
    expected["kbet"] = np.mean(of_labels)
    assert {name: getattr(scores, name) for name in expected} == pytest.approx(expected, abs=1e-6)
    assert all(0.02 < value < 0.98 for value in expected.values()), "a case in which no metric is at its end"


@pytest.fixture(scope="module")
def golden(shared):
    """Name -> the cells of a golden case."""
    cases = {}
    for name, digest, vectors, *values in golden_cases(shared / "data"):
        assert digest == GOLDEN[name]["vectors_sha256"], "scib evaluated other vectors"
        label_N, key_N = (np.unique(each, return_inverse=True)[1] for each in values)
        cases[name] = EvaluatedCells(vectors, label_N, key_N, seed=0)
    return cases


def test_clustering_and_connectivity_are_those_of_scib(golden):
    name = "kang_ctrlstim, principal components"
    found, expected = golden[name], GOLDEN[name]
    for metric in ("nmi", "ari", "graph_connectivity"):
        assert _COMPUTE[metric](found) == pytest.approx(expected[metric], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_all_that_the_averages_are_made_of_is_that_of_scib(golden, name):
    expected = {metric: value for metric, value in GOLDEN[name].items() if metric != "vectors_sha256"}
    for metric, value in expected.items():
        tolerance = 0.01 if metric in ("nmi", "ari") else 1e-3  # another version of Leiden may take another path
        assert _COMPUTE[metric](golden[name]) == pytest.approx(value, abs=tolerance)
    assert len(expected) == 5


def test_averages_are_those_of_upstream(scores):
    assert scores.avg_bio == pytest.approx((scores.nmi + scores.ari + scores.asw_label) / 3)
    assert scores.avg_batch == pytest.approx((scores.graph_connectivity + scores.asw_batch) / 2)
    assert scores.total == pytest.approx(0.6 * scores.avg_bio + 0.4 * scores.avg_batch)


def test_labels_apart_and_batch_keys_mixed():
    scores = scores_of(*cells(noise=0.02))
    assert (scores.nmi, scores.ari) == (pytest.approx(1), pytest.approx(1))
    assert scores.clisi == pytest.approx(1, abs=1e-6)
    assert scores.graph_connectivity > 0.98
    assert scores.asw_label > 0.95
    assert scores.asw_batch > 0.95
    assert scores.ilisi > 0.85
    assert scores.kbet > 0.85
    assert scores.pcr < 0.01


def test_batch_keys_apart():
    scores = scores_of(*cells(noise=0.02, shift=2.0))
    assert scores.asw_batch < 0.05
    assert scores.ilisi == pytest.approx(0, abs=1e-6)
    assert scores.kbet == 0
    assert scores.pcr > 0.5


def rings(*offsets):
    """120 cells evenly on each of three rings: seven neighbours on either side; five dimensions do not vary."""
    angle = np.arange(120) * 2 * np.pi / 120
    ring = np.stack([np.cos(angle), np.sin(angle), *np.zeros((D - 2, 120))], axis=1)
    return np.concatenate([ring + offset * np.eye(D)[2] for offset in offsets]).astype(np.float32)


def test_one_ring_per_label_is_connected_and_alternate_keys_are_mixed():
    labels, keys = np.repeat(["B", "T", "NK"], 120), np.tile(["d1", "d2"], 180)
    scores = scores_of(rings(0, 9, 18), labels, keys)
    assert (scores.graph_connectivity, scores.kbet) == (1, 1)
    assert scores.pcr == pytest.approx(0, abs=1e-6)
    assert scores.asw_label > 0.9


def test_a_label_on_three_rings_is_connected_to_a_third():
    keys = np.repeat(["d1", "d2", "d1"], 120)
    scores = scores_of(rings(0, 9, 1), np.full(N, "T"), keys)
    assert (scores.graph_connectivity, scores.kbet) == (pytest.approx(1 / 3), 0)
    assert scores.ilisi == pytest.approx(0, abs=1e-6)
    assert scores.pcr > 0.9


def test_labels_that_mean_nothing():
    vectors, _, keys = cells(n_labels=1)
    scores = scores_of(vectors, np.array(["B", "T", "NK"])[np.arange(N) * 7 % 3], keys)
    assert scores.nmi < 0.1
    assert abs(scores.ari) < 0.05
    assert scores.asw_label == pytest.approx(0.5, abs=0.02)


def test_what_one_batch_key_leaves_undefined():
    scores = scores_of(*cells(n_keys=1))
    assert {name for name in METRICS if getattr(scores, name) is None} == set(scores.undefined)
    assert set(scores.undefined) == {"asw_batch", "ilisi", "kbet", "pcr", "pcr_comparison", "avg_batch", "total"}
    assert scores.undefined["avg_batch"] == "asw_batch: all cells have the same batch key"
    assert scores.avg_bio > 0.9


def test_what_one_label_leaves_undefined():
    scores = scores_of(*cells(n_labels=1))
    assert set(scores.undefined) == {"nmi", "ari", "asw_label", "clisi", "avg_bio", "total", "pcr_comparison"}
    assert scores.avg_batch > 0.9


OF_BATCHES = ("asw_batch", "graph_connectivity", "ilisi", "kbet", "pcr")


def test_what_a_treatment_separates_counts_against_no_embedding():
    """Donors 0 and 1 are treated, 2 and 3 are not: within a treatment they mix, and a third of all is treated."""
    vectors, labels, keys = cells(n_keys=2, noise=0.02)
    is_treated = np.arange(N) >= 2 * N // 3
    moved = vectors + 2 * np.eye(D, dtype=np.float32)[D - 1] * is_treated[:, None]
    keys = np.where(is_treated, np.char.add("treated ", keys), keys)
    conditions = is_treated.astype(str)
    plain, within = (scores_of(moved, labels, keys, conditions=given) for given in (None, conditions))
    assert (plain.nmi, plain.ari, plain.asw_label, plain.clisi) == (
        within.nmi, within.ari, within.asw_label, within.clisi
    )  # fmt: skip
    assert (plain.pcr > 0.4, plain.ilisi < 0.5) == (True, True)
    assert (within.pcr < 0.01, within.ilisi > 0.85) == (True, True)
    parts = [scores_of(*(values[kept] for values in (moved, labels, keys))) for kept in (~is_treated, is_treated)]
    for name in OF_BATCHES:
        control, treated = (getattr(part, name) for part in parts)
        assert getattr(within, name) == pytest.approx((2 * control + treated) / 3, abs=1e-6), name


def test_batches_that_coincide_with_conditions_cannot_be_scored():
    vectors, labels, keys = cells()
    scores = scores_of(vectors, labels, keys, conditions=keys)
    assert set(scores.undefined) == {*OF_BATCHES, "pcr_comparison", "avg_batch", "total"} - {"graph_connectivity"}
    assert scores.undefined["ilisi"] == "in no condition: all cells have the same batch key"
    few = scores_of(vectors, labels, keys, conditions=np.arange(N).astype(str))
    assert few.undefined["asw_batch"] == "in no condition: fewer than 16 cells"


def test_batch_keys_that_are_labels():
    vectors, labels, _ = cells()
    scores = scores_of(vectors, labels, labels)
    assert scores.undefined["asw_batch"] == "no label has cells of several batch keys"
    assert scores.undefined["kbet"] == "no label with several batch keys has more than 10 cells"
    assert scores.pcr > 0.9


def test_few_cells():
    scores = scores_of(*cells(n=16))
    assert set(scores.undefined) == {"clisi", "ilisi", "kbet", "pcr_comparison"}
    assert scores.undefined["ilisi"] == "needs more than 90 cells"
    assert scores.undefined["kbet"] == "no label with several batch keys has more than 10 cells"
    assert scores.asw_label > 0.9


@pytest.mark.parametrize(("n", "undefined"), [(90, {"clisi", "ilisi"}), (91, set())])
def test_as_many_cells_as_neighbours(n, undefined):
    vectors, labels, keys = cells(n=n)
    label_N, key_N = (np.unique(values, return_inverse=True)[1] for values in (labels, keys))
    assert _undefined(EvaluatedCells(vectors, label_N, key_N, seed=0)).keys() == undefined


def test_embeddings_side_by_side():
    plain, labels, keys = cells(shift=1.0, noise=0.2)
    corrected = plain - np.eye(8, dtype=np.float32)[7] * (keys == "donor 1")[:, None]
    both = compare_embeddings({"corrected": corrected, "raw": plain}, labels, keys, seed=0, baseline="raw")
    mine, raw = both.scores
    assert (mine.name, raw.name) == ("corrected", "raw")
    direct = scib.pcr_comparison(plain, corrected, keys, categorical=True)
    assert mine.pcr_comparison == pytest.approx(direct, abs=1e-6)
    assert mine.pcr_comparison > 0.9
    assert raw.undefined == {"pcr_comparison": "this is the baseline"}
    assert both.batch_keys == {"donor 0": 180, "donor 1": 180}
    assert json.loads(json.dumps(both.to_dict()))["scores"][0]["avg_bio"] == mine.avg_bio
    worse = compare_embeddings({"raw": plain, "corrected": corrected}, labels, keys, seed=0, baseline="corrected")
    assert worse.scores[0].pcr_comparison == 0
    lines = both.table().splitlines()
    assert lines[0].split() == ["corrected", "raw"]
    assert len(lines) == 1 + len(METRICS)
    assert lines[-1].split()[-1] == "-"


def test_the_same_again(overlapping, scores):
    assert scores_of(*overlapping) == scores


def test_labels_may_have_any_type(overlapping, scores):
    vectors, labels, keys = overlapping
    assert scores_of(vectors, labels.astype(object).tolist(), keys.astype(object)) == scores


def test_nothing_to_compare_is_refused():
    with pytest.raises(InputError, match="all 360 cells have one label and one batch key"):
        scores_of(*cells(n_labels=1, n_keys=1))
    with pytest.raises(InputError, match="15 cells to evaluate; expected at least 16"):
        scores_of(*cells(n=15))
    vectors, labels, keys = cells()
    vectors[3, 2] = np.nan
    with pytest.raises(InputError, match="1 of 360 vectors of mine are not finite"):
        scores_of(vectors, labels, keys)


def test_without_scib_metrics_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ConfigError, match=r"pip install 'scgpt-ray\[eval\]'"):
        scores_of(*cells())


def test_neighbours_are_exact_and_the_cell_itself_is_none_of_them(overlapping):
    vectors, *_ = overlapping
    places, distances = nearest(vectors, 5)
    direct = direct_neighbors(vectors, 6)
    np.testing.assert_array_equal(places, direct.indices[:, 1:])
    np.testing.assert_allclose(distances, direct.distances[:, 1:], rtol=1e-5)
    np.testing.assert_array_equal(with_self(places, distances)[0], direct.indices)


def test_groups():
    assert [cells.tolist() for cells in groups_of(np.array([2, 0, 2, 5, 0]))] == [[1, 4], [0, 2], [3]]


def test_jax_waits_until_it_is_needed():
    imports = "import sys, scgpt_ray.evaluation.integration.metrics"
    code = f"{imports}; assert not {{'jax', 'scib_metrics', 'scanpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
