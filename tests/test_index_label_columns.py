"""Label columns in memory, against the table on disk."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scgpt_ray.index.label_columns import of_rows, read_labels
from scgpt_ray.records import ShardDescription
from scgpt_ray.storage import Folder

SHARD = ShardDescription.of(0, 0, is_exact=True)


def written(values, tmp_path, **options):
    pq.write_table(pa.table({"column": values}), tmp_path / SHARD.labels, **options)
    return read_labels(Folder.at(tmp_path), SHARD, "column")


def texts(n_values, n=600):
    return [None if place % 7 == 0 else f"label {place % n_values}" for place in range(n)]


@pytest.mark.parametrize(("n_values", "code"), [(1, pa.int8()), (120, pa.int8()), (400, pa.int16())])
@pytest.mark.parametrize("encode", [False, True])
def test_a_text_takes_a_byte_or_two(n_values, code, encode, tmp_path):
    values = pa.array(texts(n_values))
    # Row groups have dictionaries of their own.
    found = written(values.dictionary_encode() if encode else values, tmp_path, row_group_size=100)
    assert found.type == pa.dictionary(code, pa.string())
    assert found.to_pylist() == texts(n_values)
    some = of_rows(found, pa.array([9, 0, 0, 500]))
    assert some.type == pa.dictionary(pa.int32(), pa.string())
    assert some.to_pylist() == [texts(n_values)[row] for row in (9, 0, 0, 500)]


@pytest.mark.parametrize(
    "values", [pa.array([1, None, 3], pa.int32()), pa.array([True, False]), pa.array([], "string")]
)
def test_other_values_and_none(values, tmp_path):
    assert written(values, tmp_path).to_pylist() == values.to_pylist()
    assert of_rows(written(values, tmp_path), pa.array([], pa.int64())).to_pylist() == []


def test_the_order_of_categories_stays(tmp_path):
    stages = pa.DictionaryArray.from_arrays(np.array([1, 0], np.int32), ["young", "old"], ordered=True)
    found = written(stages, tmp_path)
    assert (found.type.ordered, of_rows(found, pa.array([0])).type.ordered) == (True, True)
