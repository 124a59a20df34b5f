"""Neighbours over shards, and those of another donor, against numpy."""

import numpy as np
import pyarrow as pa
import pytest

import scgpt_ray
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.flows.search import Reference, _widths, exact_neighbors, foreign_neighbors
from scgpt_ray.schema import JOINID
from scgpt_ray.store.export import read_embeddings
from scgpt_ray.store.manifest import require_manifest
from scgpt_ray.store.parts import PARTS, vectors_of

N = 300


@pytest.fixture(scope="module")
def run(make_embeddings, tmp_path_factory):
    return make_embeddings(tmp_path_factory.mktemp("searched") / "run", n_cells=N, empty=(7,), dimension=16)


@pytest.fixture(scope="module", params=[1, 3])
def reference(request, local_ray, run, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("searched") / "index")
    scgpt_ray.build_index(embeddings=run.uri, output=output, shards=request.param)
    return Reference.at(output)


QUERIES = np.random.default_rng(5).standard_normal((40, 16)).astype(np.float32)


def brute_force(run, queries, k, allowed=None):
    """ids and scores by definition, one query at a time."""
    ids, vectors = vectors_of(read_embeddings(run))
    found = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for row, query in enumerate(queries):
        may_vote = np.ones(len(ids), bool) if allowed is None else allowed(row, ids)
        score = np.where(may_vote, vectors.astype(np.float64) @ query, -np.inf)
        best = [place for place in np.lexsort((ids, -score))[:k] if np.isfinite(score[place])]
        found[row, : len(best)], scores[row, : len(best)] = ids[best], score[best]
    return found, scores


@pytest.mark.ray
@pytest.mark.parametrize("k", [1, 10, 299, 400])
def test_flat_search_is_exact(reference, run, k):
    ids, scores = reference.neighbors(QUERIES, k)
    expected_ids, expected_scores = brute_force(run, QUERIES, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)


@pytest.mark.ray
def test_the_exact_twin(local_ray, run):
    ids, scores = exact_neighbors(run.folder(PARTS), list(require_manifest(run).parts), QUERIES, 10)
    expected_ids, expected_scores = brute_force(run, QUERIES, 10)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)


@pytest.mark.ray
def test_no_queries(reference):
    ids, scores = reference.neighbors(QUERIES[:0], 5)
    assert ids.shape == scores.shape == (0, 5)
    assert reference.labels(ids, ["kind"]).num_rows == 0


@pytest.mark.ray
def test_labels_of_neighbours_only(reference):
    labels = reference.labels(np.array([[12, 250], [12, -1]]), ["kind", "age"])
    assert sorted(labels.to_pylist(), key=lambda row: row[JOINID]) == [
        {JOINID: 12, "kind": None, "age": 2},
        {JOINID: 250, "kind": "B", "age": 240},
    ]
    assert reference.distinct_labels("kind") == {"B", "T"}
    assert reference.distinct_labels("age") == {str(age) for age in range(N) if age != 7}


@pytest.mark.ray
@pytest.mark.parametrize("k", [1, 5, 60])
def test_neighbours_of_another_kind(reference, run, k):
    """Own kinds B, T, none and one the reference lacks; a neighbour of no kind is of another one."""
    kind_of = {row[JOINID]: row["kind"] for row in read_embeddings(run).to_pylist()}
    own = ["B", "T", None, "NK"] * 10
    ids, scores = foreign_neighbors(reference, QUERIES, pa.chunked_array([own[:3], own[3:]]), "kind", k)

    def allowed(row, ids):
        return np.array([kind_of[joinid] is None or kind_of[joinid] != own[row] for joinid in ids])

    expected_ids, expected_scores = brute_force(run, QUERIES, k, allowed)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)


@pytest.mark.ray
def test_too_few_of_another_kind_are_told(reference, run, caplog):
    own = pa.chunked_array([["B", "T"] * 20])
    ids, scores = foreign_neighbors(reference, QUERIES, own, "kind", 250)
    assert "40 cells have fewer than 250 neighbours of another kind" in caplog.text
    assert ((ids == -1) == np.isneginf(scores)).all()
    assert (ids != -1).sum(axis=1).tolist() == [199, 200] * 20  # cell 7, which is empty, is a T


@pytest.mark.parametrize(
    ("k", "n_cells", "widths"),
    [
        (10, 10**6, [40, 160, 640, 2048]),
        (10, 100, [40, 100]),
        (10, 40, [40]),
        (10, 5, [10]),
        (1024, 10**6, [2048]),
        (1024, 10, [1024]),
    ],
)
def test_widths(k, n_cells, widths):
    assert list(_widths(k, n_cells)) == widths


def test_an_unfinished_index_is_refused(tmp_path):
    with pytest.raises(ReferenceSetError, match=r"has no index.json; .*; give its path to --index"):
        Reference.at(str(tmp_path))
    (tmp_path / "template.faiss").write_bytes(b"")
    with pytest.raises(ReferenceSetError, match=r"has no index.json; .*; run the same index command again"):
        Reference.at(str(tmp_path))
