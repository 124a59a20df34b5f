"""Arrays in the format of the Census, read back as its package reads them."""

import json

import numpy as np
import pyarrow as pa
import pytest
import tiledbsoma as soma
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scgpt_ray.atlas import embedding_soma
from scgpt_ray.atlas.embedding_soma import INFO, as_bfloat16, write_embedding_soma
from scgpt_ray.schema import EMBEDDING, JOINID, matrix_array

WIDTH = 4


def table(joinids, vectors, absent=None):
    return pa.table({JOINID: pa.array(joinids), EMBEDDING: matrix_array(vectors, absent)})


def get_embedding(uri, joinids):
    """Vectors of cells [n, d], NaN for those without: the calls of cellxgene_census, in the order of its function."""
    with soma.open(uri) as array:
        info = json.loads(array.metadata["CxG_embedding_info"])
        found = np.full((len(joinids), array.shape[1]), np.nan, np.float32)
        place = soma.IntIndexer(joinids, context=array.context)
        for block in array.read(coords=(joinids,)).tables():
            rows = place.get_indexer(block["soma_dim_0"].to_numpy())
            found[rows, block["soma_dim_1"].to_numpy()] = block["soma_data"].to_numpy()
    return info, found


@pytest.fixture
def vectors():
    vectors = np.random.default_rng(4).standard_normal((9, WIDTH)).astype(np.float32)
    vectors[1, 2] = vectors[5] = 0  # zeros are stored, too
    return vectors


def test_get_embedding_reads_it(vectors, tmp_path):
    joinids = np.array([3, 5, 6, 2050, 2051, 4100, 4101, 4102, 9000])
    absent = np.arange(9) == 2
    tables = [
        table(joinids[:3], vectors[:3], absent[:3]),
        table(joinids[3:5], vectors[3:5]),
        table([2500], vectors[:1], np.array([True])),
        table(joinids[5:], vectors[5:]),
    ]
    write_embedding_soma(tmp_path / "array", tables, (10_000, WIDTH), {"census_version": "2025-11-08"})
    asked = np.array([9000, 4, 3, 6, 5, 2500, 4102, 2050, 9999])
    info, found = get_embedding(str(tmp_path / "array"), asked)
    assert info == {"census_version": "2025-11-08"}
    row_of = {joinid: row for row, joinid in enumerate(joinids.tolist()) if not absent[row]}
    nothing = np.full(WIDTH, np.nan)
    expected = [vectors[row_of[joinid]] if joinid in row_of else nothing for joinid in asked.tolist()]
    np.testing.assert_array_equal(found, expected)


def test_it_is_what_the_census_accepts(vectors, tmp_path):
    """The rules of census_contrib's validate.py."""
    write_embedding_soma(tmp_path / "array", [table(np.arange(9), vectors)], (20, WIDTH), {})
    with soma.open(str(tmp_path / "array")) as array:
        assert isinstance(array, soma.SparseNDArray)
        assert INFO in array.metadata
        assert array.shape == (20, WIDTH)
        assert array.schema.field("soma_data").type == pa.float32()
        assert array.nnz == 9 * WIDTH
        cells = array.read(result_order="row-major").tables().concat()
    order = cells["soma_dim_0"].to_numpy() * WIDTH + cells["soma_dim_1"].to_numpy()
    assert order.tolist() == list(range(9 * WIDTH))


@pytest.mark.parametrize(("values", "fragments"), [(1, 3), (5 * WIDTH, 2), (9 * WIDTH, 1)])
def test_tables_share_fragments(vectors, tmp_path, monkeypatch, values, fragments):
    monkeypatch.setattr(embedding_soma, "_FRAGMENT_VALUES", values)
    joinids = np.arange(9) * 3000
    tables = [table(joinids[start : start + 3], vectors[start : start + 3]) for start in (0, 3, 6)]
    write_embedding_soma(tmp_path / "array", tables, (30_000, WIDTH), {})
    np.testing.assert_array_equal(get_embedding(str(tmp_path / "array"), joinids)[1], vectors)
    assert len(list((tmp_path / "array" / "__fragments").iterdir())) == fragments
    # One file says which fragments are committed, and one what they hold.
    assert len(list((tmp_path / "array" / "__commits").glob("*.con"))) == 1
    assert len(list((tmp_path / "array" / "__fragment_meta").iterdir())) == (fragments > 1)


def test_no_cell_has_an_embedding(vectors, tmp_path):
    write_embedding_soma(tmp_path / "array", [table([4], vectors[:1], np.array([True]))], (9, WIDTH), {})
    assert np.isnan(get_embedding(str(tmp_path / "array"), np.arange(9))[1]).all()


def test_half_is_rounded_to_bfloat16(vectors, tmp_path):
    write_embedding_soma(tmp_path / "array", [table(np.arange(9), vectors)], (9, WIDTH), {}, half=True)
    _, found = get_embedding(str(tmp_path / "array"), np.arange(9))
    np.testing.assert_array_equal(found, as_bfloat16(vectors))
    assert (found != vectors).any()


@given(arrays(np.float32, 30, elements=st.floats(-1, 1, width=32)))
def test_bfloat16_is_that_of_torch(values):
    import torch

    expected = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(as_bfloat16(values), expected)


@pytest.mark.parametrize(
    ("value", "rounded"), [(1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (-1 - 3 * 2**-8, -1 - 2**-6), (0.0, 0.0)]
)
def test_bfloat16_ties_go_to_even(value, rounded):
    assert as_bfloat16(np.array([value], np.float32)).tolist() == [rounded]
