"""Query cells and predictions in parts, against the whole tables."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.parts import PARTS, part_name
from scgpt_ray.pipelines.query_parts import CommitPredictions, QueryParts, ReadQuery
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID, NEIGHBOR, SCORE
from scgpt_ray.storage import Folder

REQUEST = {"k": 3}


@pytest.fixture(scope="module")
def embedded(make_embeddings, tmp_path_factory):
    return make_embeddings(tmp_path_factory.mktemp("query") / "embeddings")


@pytest.fixture
def parts(embedded, tmp_path):
    return QueryParts(embedded, Manifest.read(embedded), Folder.at(tmp_path / "predictions.parquet"), REQUEST)


def predictions_of(cells):
    """Two scores for each cell but for those without an embedding."""
    ids = cells[JOINID].to_pylist()
    found = cells[EMBEDDING].is_valid().to_pylist()
    return pa.table({
        JOINID: cells[JOINID],
        "type": pa.array(["T" if number % 2 else "B" for number in ids]),
        NEIGHBOR: pa.array([[1, 2] if there else [] for there in found], pa.list_(pa.int64())),
        SCORE: pa.array([[0.9, number / 100] if there else [] for number, there in zip(ids, found, strict=True)],
                        pa.list_(pa.float32())),
    })  # fmt: skip


def predict(parts, unknown_terms):
    commit = CommitPredictions(parts.predictions)
    todo, _ = parts.left()
    for partition in todo:
        cells = ReadQuery(parts.embedded.folder(PARTS))(partition)
        receipt = commit(predictions_of(cells), partition, {"unknown_terms": unknown_terms})
        assert receipt == {"unknown_terms": unknown_terms, "cells": len(cells)}
    return parts


def left(parts):
    todo, _ = parts.left()
    return [part_name(partition.number) for partition in todo]


@pytest.fixture
def predicted(parts):
    return predict(parts, {"CL:1": 2})


def test_what_is_committed_is_kept(predicted, embedded, tmp_path):
    assert left(predicted) == []
    predicted.predictions.remove(predicted.names[1])
    assert left(predicted) == [predicted.names[1]]
    assert sorted(predicted.predictions.names()) == [predicted.names[0], *predicted.names[2:]]


def test_what_was_made_otherwise_is_removed(predicted, embedded, make_embeddings, tmp_path):
    """By another request, or of other embeddings, or torn, or of a part that is no longer planned."""
    folder = predicted.predictions
    first, second, third = predicted.names
    folder.write("part-99999.parquet", folder.read(first))
    folder.write(second, folder.read(second)[:-9])
    folder.write(third, folder.read(first))
    assert left(predicted) == [second, third]
    assert folder.names() == [first]
    assert left(QueryParts(embedded, predicted.manifest, folder, {"k": 4})) == predicted.names
    assert folder.names() == []


def test_other_embeddings_have_other_predictions(predicted, make_embeddings, tmp_path):
    longer = make_embeddings(tmp_path / "other", n_cells=20, empty=(3, 12))
    there = QueryParts(longer, Manifest.read(longer), predicted.predictions, REQUEST)
    assert left(there) == [predicted.names[1]]


def test_all_predictions(predicted, embedded):
    assert predicted.whole().equals(predictions_of(read_embeddings(embedded)))
    assert predicted.left() == ((), {"CL:1": 2 * len(predicted.names)})
    assert pq.read_table(predicted.predictions.uri).num_rows == 20, "as others read it"


@given(rows=st.lists(st.integers(0, 19), unique=True))
def test_rows_in_any_order(predicted_once, embedded, rows):
    chosen = np.array(rows, np.int64)
    cells = read_embeddings(embedded)
    assert predicted_once.rows(chosen)[JOINID].to_pylist() == cells[JOINID].take(pa.array(chosen)).to_pylist()
    assert (
        predicted_once.rows(chosen, ["kind"]).to_pylist() == cells.select(["kind"]).take(pa.array(chosen)).to_pylist()
    )
    expected = predictions_of(cells).take(pa.array(chosen))
    assert predicted_once.predicted_rows(chosen).equals(expected)


@pytest.fixture(scope="module")
def predicted_once(embedded, tmp_path_factory):
    parts = QueryParts(embedded, Manifest.read(embedded), Folder.at(tmp_path_factory.mktemp("once")), REQUEST)
    return predict(parts, {})


def test_a_damaged_part_is_named(predicted):
    first = predicted.names[0]
    content = bytearray(predicted.predictions.read(first))
    content[len(content) // 8] ^= 1
    predicted.predictions.write(first, bytes(content))
    with pytest.raises(ReferenceSetError, match=f"{first} cannot be read: .*; remove the file, and run map again"):
        predicted.whole()
