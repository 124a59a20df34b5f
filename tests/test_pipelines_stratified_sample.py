from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scgpt_ray
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.pipelines.stratified_sample import (
    CELLS,
    LEAST_PER_GROUP,
    count_cells,
    draw_cells,
    even_quotas,
    vectors_of_cells,
)
from scgpt_ray.schema import EMBEDDING, JOINID


@pytest.mark.parametrize(
    ("available", "size", "expected"),
    [
        ({"a": 1000, "b": 1000, "c": 1000}, 90, {"a": 30, "b": 30, "c": 30}),
        # What c lacks is shared among the others.
        ({"a": 1000, "b": 50, "c": 10}, 100, {"a": 45, "b": 45, "c": 10}),
        ({"a": 1000, "b": 20, "c": 10}, 100, {"a": 70, "b": 20, "c": 10}),
        ({"a": 5, "b": 2}, 100, {"a": 5, "b": 2}),
        ({"a": 9, "b": 9}, 5, {}),
        ({}, 10, {}),
    ],
)
def test_groups_share_a_sample_evenly(available, size, expected):
    found = even_quotas(available, size, seed=0)
    if size < LEAST_PER_GROUP:  # of one group, drawn
        assert list(found.values()) == [size] * bool(available)
    else:
        assert found == expected


@given(st.lists(st.integers(1, 400), max_size=40), st.integers(1, 2000), st.integers(0, 99))
def test_no_group_gets_more_than_another_unless_that_has_no_more(cells, size, seed):
    available = {f"g{place}": n for place, n in enumerate(cells)}
    quotas = even_quotas(available, size, seed)
    assert len(quotas) == min(len(cells), max(1, size // LEAST_PER_GROUP))
    assert sum(quotas.values()) == min(size, sum(available[group] for group in quotas))
    most = max(quotas.values(), default=0)
    assert all(n == available[group] or n >= most - 1 for group, n in quotas.items())
    assert quotas == even_quotas(dict(reversed(available.items())), size, seed)


def test_of_many_groups_some_are_drawn():
    available = {f"g{place}": 500 for place in range(100)}
    first, second = even_quotas(available, 200, 0), even_quotas(available, 200, 1)
    assert set(first.values()) == {20}
    assert len(first) == 10
    assert first.keys() != second.keys()


@pytest.fixture(scope="module")
def reference(make_embeddings, tmp_path_factory):
    place = tmp_path_factory.mktemp("stratified")
    make_embeddings(place / "embeddings", n_cells=40)
    scgpt_ray.build_index(
        embeddings=str(place / "embeddings"), output=str(place / "index"), label_columns=["kind", "age"], shards=3,
        executor="serial",
    )  # fmt: skip
    return Reference.at(str(place / "index")).on(SerialExecutor())


def test_cells_are_counted_over_the_shards(reference):
    counted = count_cells(reference, ["kind", "kind"], None)
    assert counted.column_names == ["kind", CELLS]
    # The kinds are B, T and none in turn, and cell 3, a B, has no embedding.
    assert {row["kind"]: row[CELLS] for row in counted.to_pylist()} == {"B": 13, "T": 13, None: 13}
    both = count_cells(reference, ["kind", "age"], "age < 10")
    assert set(both[CELLS].to_pylist()) == {1}
    assert both.num_rows == 9
    assert both.schema.field("age").type == pa.string()


def test_vectors_belong_to_their_cells(reference):
    cells = draw_cells(reference, ["kind", "age"], {"B": 4, "T": 5}, None, 0)
    assert sorted(cells["kind"].to_pylist()) == ["B"] * 4 + ["T"] * 5
    # Shards in an order other than that of the cells.
    index = reference.index.replace(shards=reference.index.shards[::-1])
    vectors = vectors_of_cells(replace(reference, index=index), cells[JOINID].to_numpy())
    embedded = read_embeddings(reference.folder.folder("../embeddings"))
    vector_of = dict(zip(embedded[JOINID].to_pylist(), embedded[EMBEDDING].to_pylist(), strict=True))
    expected = np.array([vector_of[joinid] for joinid in cells[JOINID].to_pylist()])
    np.testing.assert_allclose(vectors, expected, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
