"""Neighbours over shards, filtered and not, in this process and by actors, against numpy."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

import scgpt_ray
from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.index import rounds
from scgpt_ray.index.neighbor_filter import NeighborFilter
from scgpt_ray.index.recall import recall_at
from scgpt_ray.index.searcher import SearchParams
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS, vectors_of
from scgpt_ray.pipelines.reference import Reference, exact_neighbors
from scgpt_ray.schema import JOINID

N = 300
ALL = SearchParams(10**6, 300)


@pytest.fixture(scope="module")
def run(make_embeddings, tmp_path_factory):
    return make_embeddings(tmp_path_factory.mktemp("searched") / "run", n_cells=N, empty=(7,), dimension=16)


@pytest.fixture(scope="module", params=[("Flat", 1), ("Flat", 3), ("PCAR8,IVF4,PQ4x4fsr", 2)], ids=str)
def reference(request, run, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("searched") / "index")
    factory, shards = request.param
    scgpt_ray.build_index(executor="serial", embeddings=run.uri, output=output, factory=factory, shards=shards)
    return Reference.at(output).on(SerialExecutor())


QUERIES = np.random.default_rng(5).standard_normal((40, 16)).astype(np.float32)
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


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


def assert_found(found, expected, exact):
    """The same neighbours; with codes every cell is a candidate, and half precision may swap the nearly equal."""
    atol = 1e-5 if exact else 2e-3
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=atol)
    if exact:
        np.testing.assert_array_equal(found[0], expected[0])
    else:
        assert recall_at(found[0], expected[0]) >= 0.975  # one of forty


@pytest.mark.parametrize("k", [1, 10, 299, 400])
def test_search_finds_what_brute_force_finds(reference, run, k):
    found = reference.neighbors(QUERIES, k, params=ALL)
    assert_found(found, brute_force(run, QUERIES, k), reference.index.factory == "Flat")


def test_the_exact_twins(reference, run):
    expected = brute_force(run, QUERIES, 10)
    assert_found(
        exact_neighbors(SerialExecutor(), run.folder(PARTS), list(require_manifest(run).parts), QUERIES, 10),
        expected,
        True,
    )
    assert_found(reference.exact(QUERIES, 10), expected, reference.index.factory == "Flat")


@pytest.mark.parametrize("exact_rows", [20_000, 150, 0])
@pytest.mark.parametrize("actors", [1, 2])
def test_actors_answer_to_the_bit_what_this_process_answers(reference, actors, exact_rows, monkeypatch):
    """150: for some queries, few enough cells are left."""
    monkeypatch.setattr(rounds, "EXACT_ROWS", exact_rows)
    monkeypatch.setattr(rounds, "_CODES_PER_VECTOR", 10**6)
    cluster = Reference(reference.folder, reference.index, SerialExecutor(), actors)
    own = pa.table({"kind": ["B", "T", None, "NK"] * 10})
    for allowed in (None, NeighborFilter.among("age > 20", own, 40)):
        for found, expected in zip(
            cluster.neighbors(QUERIES, 10, allowed), reference.neighbors(QUERIES, 10, allowed), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.ray
def test_actors_on_ray_answer_what_this_process_answers(local_ray, reference):
    from scgpt_ray.execution.ray_executor import RayExecutor

    cluster = Reference(reference.folder, reference.index, RayExecutor(), 2)
    own = pa.table({"kind": ["B", "T", None, "NK"] * 10})
    for allowed in (None, NeighborFilter.among("age > 20", own, 40)):
        for params in (None, SearchParams(1, 20)):
            expected = reference.neighbors(QUERIES, 10, allowed, params)
            for found, alone in zip(cluster.neighbors(QUERIES, 10, allowed, params), expected, strict=True):
                np.testing.assert_array_equal(found, alone)


def test_no_list_is_short_while_there_are_neighbours(reference):
    ids, scores = reference.neighbors(QUERIES, 250, params=SearchParams(1, 1))
    assert (ids >= 0).all()
    assert np.isfinite(scores).all()


def test_no_queries(reference):
    ids, scores = reference.neighbors(QUERIES[:0], 5)
    assert ids.shape == scores.shape == (0, 5)
    assert reference.labels(ids, ["kind"]).num_rows == 0


def test_labels_of_neighbours_only(reference):
    labels = reference.labels(np.array([[12, 250], [12, -1]]), ["kind", "age"])
    assert sorted(labels.to_pylist(), key=lambda row: row[JOINID]) == [
        {JOINID: 12, "kind": None, "age": 2},
        {JOINID: 250, "kind": "B", "age": 240},
    ]


@pytest.mark.parametrize("condition", [None, "age >= 100", "kind != 'B' and age < 50"])
def test_cells_of_every_value(reference, run, condition):
    """A cell without a value counts as one of None; one without an embedding is not in the index."""
    rows = [row for row in read_embeddings(run).to_pylist() if row["embedding"] is not None]
    met = {
        None: lambda _: True,
        "age >= 100": lambda row: row["age"] >= 100,
        "kind != 'B' and age < 50": lambda row: row["kind"] == "T" and row["age"] < 50,
    }[condition]
    for column in ("kind", "age"):
        texts = [None if row[column] is None else str(row[column]) for row in rows if met(row)]
        assert reference.cell_counts(column, condition) == Counter(texts)


def test_an_identifier_is_not_counted(reference):
    """The driver never holds a value per cell."""
    assert reference.listed_counts("age", 10) is None
    assert reference.listed_counts("kind", 10) == reference.cell_counts("kind")


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("condition", [None, "age >= 100", "kind != 'B'"])
def test_neighbours_of_another_kind_and_age(reference, run, k, condition):
    """A null equals none; a value that shares either column is out; a null satisfies no condition."""
    row_of = {row[JOINID]: row for row in read_embeddings(run).to_pylist()}
    own = pa.table({"kind": ["B", "T", None, "NK"] * 10, "age": [150, 151, 152, None] * 10})
    rows = own.to_pylist()

    def allowed(query, ids):
        mine = rows[query]
        found = [row_of[joinid] for joinid in ids]
        other = [all(row[name] is None or row[name] != mine[name] for name in ("kind", "age")) for row in found]
        met = [
            {None: True, "age >= 100": row["age"] >= 100, "kind != 'B'": row["kind"] not in (None, "B")}[condition]
            for row in found
        ]
        return np.logical_and(other, met)

    found = reference.neighbors(QUERIES, k, NeighborFilter.among(condition, own, len(QUERIES)), ALL)
    assert_found(found, brute_force(run, QUERIES, k, allowed), reference.index.factory == "Flat")


def test_all_that_are_allowed_are_found_and_no_more(reference):
    own = pa.table({"kind": ["B", "T"] * 20})
    ids, scores = reference.neighbors(QUERIES, 250, NeighborFilter.among(None, own, 40))
    assert ((ids == -1) == np.isneginf(scores)).all()
    assert (ids != -1).sum(axis=1).tolist() == [199, 200] * 20  # cell 7, which is empty, is a T
    found, _ = reference.neighbors(QUERIES, 3, NeighborFilter.among("age < 0", pa.table({}), 40))
    assert (found == -1).all()


@pytest.mark.parametrize("n", [0, 1, 50, 1000])
def test_a_sample_with_vectors_and_labels(reference, run, n):
    ids, vectors, labels = reference.sample(n, 3, ["kind"])
    assert len(ids) == len(vectors) == labels.num_rows == min(n, N - 1)
    assert len(set(ids.tolist())) == len(ids)
    assert labels[JOINID].to_pylist() == ids.tolist()
    rows = {row[JOINID]: row for row in read_embeddings(run).to_pylist()}
    assert labels["kind"].to_pylist() == [rows[joinid]["kind"] for joinid in ids]
    assert vectors.dtype == np.float32
    for joinid, vector in zip(ids, vectors, strict=True):
        np.testing.assert_allclose(vector, rows[joinid]["embedding"], atol=1e-3)
    assert reference.sample(n, 3, ["kind"])[0].tolist() == ids.tolist()
    if n == 50:
        assert reference.sample(n, 4, [])[0].tolist() != ids.tolist()


def test_what_an_index_cannot_answer(reference):
    with pytest.raises(ReferenceSetError, match=r"queries have width 8, .* has width 16"):
        reference.neighbors(QUERIES[:, :8], 3)
    with pytest.raises(ConfigError, match=r"--k 300: .* holds 299 cells"):
        reference.require(300, (), None)
    with pytest.raises(ConfigError, match=r"keeps no column donor; expected one of kind, age"):
        reference.require(3, ("donor",), None)
    for condition in ("donor == 'a'", "kind ==", "age == 'old'"):
        with pytest.raises(ConfigError, match=r"--neighbor-filter") as caught:
            reference.require(3, (), condition)
        assert "\n" not in str(caught.value)
    reference.require(299, ("kind",), "kind == 'B' and age < 9")


def test_an_unfinished_index_is_refused(tmp_path):
    with pytest.raises(ReferenceSetError, match=r"has no index.json; .*; give its path to --index"):
        Reference.at(str(tmp_path)).on(SerialExecutor())
    (tmp_path / "template.faiss").write_bytes(b"")
    with pytest.raises(ReferenceSetError, match=r"has no index.json; .*; run the same index command again"):
        Reference.at(str(tmp_path)).on(SerialExecutor())
