"""The vote on a query by workers."""

import numpy as np
import pyarrow.parquet as pq
import pytest

import scgpt_ray
from scgpt_ray.config import MapSettings
from scgpt_ray.errors import WorkerError
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.pipelines import query_votes
from scgpt_ray.pipelines.map import prediction_rules, reference_cells
from scgpt_ray.pipelines.query_parts import QueryParts
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.records import Manifest
from scgpt_ray.schema import JOINID, NEIGHBOR
from scgpt_ray.storage import Folder

K = 5


@pytest.fixture(scope="module")
def place(make_embeddings, tmp_path_factory):
    """A reference of 300 cells with its index, and a query of four parts, of which the second has no embedding."""
    place = tmp_path_factory.mktemp("votes")
    reference = make_embeddings(place / "reference", n_cells=300)
    scgpt_ray.build_index(executor="serial", embeddings=reference.uri, output=str(place / "index"), shards=2)
    make_embeddings(place / "query", n_cells=32, empty=range(8, 16))
    return place


def committed(place, output, executor):
    """Name -> bytes of the parts of the predictions."""
    settings = MapSettings.of({
        "query": "-", "checkpoint": "-", "output": "-", "index": str(place / "index"), "k": K,
        "label_columns": ["kind"], "exclude_same": ["age"],
    })  # fmt: skip
    reference, embedded = Reference.at(settings.index).on(executor), Folder.at(place / "query")
    rules = prediction_rules(settings, reference.index)
    votes = query_votes.QueryVotes(settings, reference, rules, reference_cells(settings, reference, rules), {})
    votes.commit(QueryParts(embedded, Manifest.read(embedded), Folder.at(output), votes.request()), executor)
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.ray
def test_workers_write_the_bytes_that_this_process_writes(local_ray, place, tmp_path):
    from scgpt_ray.execution.ray_executor import RayExecutor

    assert committed(place, tmp_path / "ray", RayExecutor()) == committed(place, tmp_path / "here", SerialExecutor())
    table = pq.read_table(tmp_path / "ray")
    assert table[JOINID].to_pylist() == list(range(10, 42))
    neighbors = table[NEIGHBOR].to_pylist()
    assert [len(found) for found in neighbors] == [K] * 8 + [0] * 8 + [K] * 16
    # `age` is the place of a cell in both: the cell of the reference that it is must not vote.
    assert not any(joinid in found for joinid, found in zip(range(10, 42), neighbors, strict=True))


def test_a_part_that_cannot_be_made_costs_the_run_and_no_other_part(place, tmp_path, monkeypatch, caplog):
    whole = committed(place, tmp_path / "whole", SerialExecutor())
    tried, predictions_of = [], query_votes.predictions_of

    def short_of_memory(queries, *arguments):
        if queries[JOINID][0].as_py() == 26:
            tried.append(0)
            raise MemoryError("of this part")
        return predictions_of(queries, *arguments)

    monkeypatch.setattr(query_votes, "predictions_of", short_of_memory)
    with pytest.raises(WorkerError, match=r"^1 of 4 parts .* part-00002.parquet MemoryError: of this part; map again"):
        committed(place, tmp_path / "some", SerialExecutor())
    assert len(tried) == 3
    left = {path.name for path in (tmp_path / "some").iterdir()}
    assert left == whole.keys() - {"part-00002.parquet"}
    monkeypatch.undo()
    assert committed(place, tmp_path / "some", SerialExecutor()) == whole


def test_too_few_neighbours_are_said(place, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Reference, "neighbors", lambda _self, queries, k, _allowed: (
        np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)))  # fmt: skip
    committed(place, tmp_path / "none", SerialExecutor())
    assert "24 cells have fewer than 5 allowed neighbours" in caplog.text
