"""A table goes through a row of Ray Data as it was, with its partition and figures."""

import sys
import time
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
import ray

from scgpt_ray.atlas.plan import Partition, cut
from scgpt_ray.execution.attempts import Attempts
from scgpt_ray.execution.cluster import connected
from scgpt_ray.execution.ray_stream import PartitionSource, as_row, from_row, stream
from scgpt_ray.pipelines.executor import Stages
from scgpt_ray.schema import EMBEDDING, JOINID, matrix_array, ragged, ragged_array

CELLS = pa.table({
    JOINID: pa.array([3, 5, 8]),
    "obs_id": pa.array(["a", None, "c"]),
    "kind": pa.array(["B", None, "B"]).dictionary_encode(),
    "gene": ragged_array(np.array([0, 2, 2, 3]), np.array([7, 9, 1], np.uint16)),
    EMBEDDING: matrix_array(np.eye(3, 4, dtype=np.float32), np.array([False, True, False])),
})  # fmt: skip

PARTITION = Partition(number=2, first=3, last=8, n_cells=3, digest="0123456789abcdef")


@pytest.mark.parametrize(
    "table",
    [
        CELLS,
        CELLS.slice(1),
        CELLS.slice(1, 1),
        CELLS.slice(0, 0),
        pa.concat_tables([CELLS, CELLS.slice(2), CELLS.slice(0, 0)]),
        CELLS.schema.empty_table(),
    ],
)
def test_round_trip(table):
    figures = {"n": 3, "seconds": 0.5, "actor": {"device": "cpu"}}
    row = as_row(table, PARTITION, figures)
    assert row.num_rows == 1
    back, partition, found = from_row(row)
    back.validate(full=True)
    assert (partition, found) == (PARTITION, figures)
    assert back.schema.equals(table.schema)
    assert back.to_pylist() == table.to_pylist()
    assert ragged(back["gene"])[1].tolist() == [gene for genes in table["gene"].to_pylist() for gene in genes]


def test_a_row_among_others_keeps_its_table():
    """Ray keeps several rows in a block, cuts it, and sends slices of it."""
    rows = pa.concat_tables([as_row(CELLS.slice(start), PARTITION, {"n": start}) for start in range(3)])
    for start in range(3):
        table, _, figures = from_row(rows.slice(start, 1))
        assert figures == {"n": start}
        assert table.to_pylist() == CELLS.slice(start).to_pylist()


def test_two_rows_are_not_one_partition():
    with pytest.raises(AssertionError, match="one row is one partition"):
        from_row(pa.concat_tables([as_row(CELLS, PARTITION), as_row(CELLS, PARTITION)]))


@pytest.mark.ray
def test_one_read_task_a_partition(local_ray):
    partitions = cut(np.arange(10), 4)
    source = PartitionSource(None, partitions, None)
    tasks = source.get_read_tasks(1)
    assert [task.metadata.num_rows for task in tasks] == [1] * len(partitions)
    assert source.estimate_inmemory_data_size() == sum(task.metadata.size_bytes for task in tasks)


def ids_of(partition):
    return pa.table({JOINID: [partition.number]})


def receipt(table, partition, figures):
    return {"number": partition.number}


@pytest.mark.ray
@pytest.mark.parametrize("taken", [1, 3])
def test_no_actor_outlives_its_stream(local_ray, monkeypatch, taken):
    """Whether all that it yields is taken or not."""
    started, start = [], Attempts.start
    monkeypatch.setattr(Attempts, "start", lambda most: started.append(start(most)) or started[-1])
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with connected():
        receipts = stream(cut(np.arange(10), 4), Stages(ids_of, None, (), receipt), None)
        assert len([*islice(receipts, taken)]) == taken
        receipts.close()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    with pytest.raises(ray.exceptions.RayActorError):
        for _ in range(300):  # Ray kills without waiting
            ray.get(started[0].retries.remote(), timeout=30)
            time.sleep(0.1)
