"""Files of any dtype and layout give the tokens of a plain loop over their cells, or are refused for what is wrong."""

import tempfile
import warnings
from itertools import pairwise
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scgpt_ray.atlas.genes import harmonize
from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError
from scgpt_ray.network.checkpoint import read_checkpoint
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.schema import COUNT, EMBEDDING, GENE, JOINID
from scgpt_ray.tokenizer.rules import TokenRules, tokenize

RULES = TokenRules(max_length=4)
DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]
NAMES = ["GENE0", "GENE1", "GENE2", "GENE3", "GENE4", "other"]
OBS = {
    "categorical": lambda n: pd.Categorical([None if row % 3 == 2 else f"t{row % 2}" for row in range(n)]),
    "one category": lambda n: pd.Categorical(["a"] * n, categories=["b", "a"], ordered=True),
    "nullable integer": lambda n: pd.array([None if row == 1 else row for row in range(n)], dtype="Int8"),
    "nullable boolean": lambda n: pd.array([None if row == 1 else row % 2 == 0 for row in range(n)], dtype="boolean"),
    "text": lambda n: np.array([f"é{row}" for row in range(n)], object),
    "boolean": lambda n: np.arange(n) % 2 == 0,
    "half": lambda n: np.arange(n).astype(np.float16),
}


@st.composite
def atlases(draw):
    """Counts [n, genes], names of genes (some twice, some unknown), and how to write them."""
    n_cells, n_genes = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    values = st.lists(st.integers(0, 1 if dtype.kind == "b" else 9), min_size=n_genes, max_size=n_genes)
    cells = st.one_of(values, st.just([0] * n_genes))
    counts = np.array(draw(st.lists(cells, min_size=n_cells, max_size=n_cells))).astype(dtype)
    if dtype.kind == "f":
        counts /= 4
    names = draw(st.lists(st.sampled_from(NAMES), min_size=n_genes, max_size=n_genes))
    return counts, names, draw(st.sampled_from(sorted(OBS))), draw(st.integers(1, 6))


def tokens_of_a_loop(counts, names, vocabulary):
    """The slow twin: one cell after the other, rows of the same gene summed."""
    cells = []
    for row in counts.astype(np.float64):
        sums = dict.fromkeys(sorted({vocabulary.tokens[name] for name in names if name in vocabulary.tokens}), 0.0)
        for name, count in zip(names, row, strict=True):
            if name in vocabulary.tokens:
                sums[vocabulary.tokens[name]] += count
        cells.append({token: count for token, count in sums.items() if count})
    table = pa.table({
        JOINID: np.arange(len(counts)),
        GENE: pa.array([list(cell) for cell in cells], pa.list_(pa.int32())),
        COUNT: pa.array([list(cell.values()) for cell in cells], pa.list_(pa.float32())),
    })  # fmt: skip
    return tokenize(table, vocabulary, RULES)


def read(uri, vocabulary, size, column):
    """Tokens of an atlas, partition by partition."""
    source = locate(str(uri), CellSettings(obs_columns=(column,)))
    genes = harmonize(
        source.var(), vocabulary.tokens, columns=("feature_name",), gene_table=None, columns_are_default=False, where=""
    )
    joinids = source.joinids()
    source.totals(joinids)
    blocks = [block for partition in cut(joinids, size) for block in source.read(partition, genes.lookup())]
    return tokenize(pa.concat_tables(blocks), vocabulary, RULES)


def assert_same_cells(found, expected):
    """The same joinids, bins by token, and numbers of genes."""
    assert found.num_rows == expected.num_rows
    for mine, theirs in zip(found.to_pylist(), expected.to_pylist(), strict=True):
        assert (mine[JOINID], mine["n_genes"]) == (theirs[JOINID], theirs["n_genes"])
        assert dict(zip(mine["gene"], mine["bin"], strict=True)) == dict(
            zip(theirs["gene"], theirs["bin"], strict=True)
        )


def annotated(matrix, names, kind):
    obs = pd.DataFrame({"column": OBS[kind](matrix.shape[0])}, index=[f"c{row}" for row in range(matrix.shape[0])])
    var = pd.DataFrame({"feature_name": names}, index=[f"g{row}" for row in range(matrix.shape[1])])
    return anndata.AnnData(matrix, obs=obs, var=var)


def write_h5ad(path, counts, names, kind, layout):
    """A file of any layout; what scipy and anndata cannot hold (float16, bool in CSC) is put in by h5py."""
    wide = counts.astype(np.float64)
    matrix = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[layout.split()[0]](wide)
    with warnings.catch_warnings(action="ignore"):
        annotated(matrix, names, kind).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        place = "X" if layout.startswith("dense") else "X/data"
        values, attributes = file[place][:].astype(counts.dtype), dict(file[place].attrs)
        del file[place]
        options = (
            {"chunks": tuple(min(2, size) for size in values.shape)} if values.size and "chunked" in layout else {}
        )
        options |= {"compression": "gzip"} if options and "gzip" in layout else {}
        file.create_dataset(place, data=values, **options).attrs.update(attributes)


LAYOUTS = ["csr", "csr chunked", "csr chunked gzip", "csc", "csc chunked", "dense", "dense chunked gzip"]


@pytest.fixture(scope="module")
def network(checkpoint):
    opened = read_checkpoint(checkpoint)
    return opened.vocabulary, Embedder(opened)


def check_h5ad(network, drawn, layout, *, vectors):
    counts, names, kind, size = drawn
    vocabulary, embedder = network
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "cells.h5ad"
        write_h5ad(path, counts, names, kind, layout)
        found = read(path, vocabulary, size, "column")
    expected = tokens_of_a_loop(counts, names, vocabulary)
    assert_same_cells(found, expected)
    if not vectors:
        return
    for mine, theirs in zip(embedder(found)[EMBEDDING], embedder(expected)[EMBEDDING], strict=True):
        if theirs.as_py() is None:
            assert mine.as_py() is None
        else:
            np.testing.assert_allclose(mine.as_py(), theirs.as_py(), rtol=0, atol=1e-6)


@settings(max_examples=16, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=atlases(), layout=st.sampled_from(LAYOUTS))
def test_h5ad(network, drawn, layout):
    check_h5ad(network, drawn, layout, vectors=False)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=atlases(), layout=st.sampled_from(LAYOUTS))
def test_h5ad_at_length(network, drawn, layout):
    check_h5ad(network, drawn, layout, vectors=True)


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=atlases(), layout=st.sampled_from(LAYOUTS), wrong=st.sampled_from([-1, np.nan, np.inf]), place=st.integers(0)
)
def test_a_value_that_is_no_count_is_refused_wherever_it_is(network, drawn, layout, wrong, place):
    counts, names, kind, size = drawn
    counts = counts.astype(np.float64 if wrong != -1 else np.int8)
    counts.flat[place % counts.size] = wrong
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        write_h5ad(path, counts, names, kind, layout)
        with pytest.raises(AtlasError, match=r"cell c\d has (-1|NaN|inf) for gene g\d; expected finite counts >= 0"):
            read(path, network[0], size, "column")


def check_soma(network, make_soma, drawn):
    counts, names, kind, size = drawn
    with tempfile.TemporaryDirectory() as place:
        stored = counts if counts.dtype != np.float16 else counts.astype(np.float32)  # TileDB has no float16
        kind = "text" if kind == "half" else kind
        with warnings.catch_warnings(action="ignore"):
            uri = make_soma(annotated(sp.csr_matrix(stored), names, kind), Path(place) / "atlas")
        assert_same_cells(read(uri, network[0], size, "column"), tokens_of_a_loop(counts, names, network[0]))


@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow])
@example(drawn=(np.array([[True]]), ["GENE0"], "boolean", 1))
@given(drawn=atlases())
def test_soma(network, make_soma, drawn):
    check_soma(network, make_soma, drawn)


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=atlases())
def test_soma_at_length(network, make_soma, drawn):
    check_soma(network, make_soma, drawn)


@settings(max_examples=10)
@given(drawn=atlases(), cuts=st.lists(st.integers(0, 6), max_size=4), spare=st.integers(0, 2))
def test_tokens_and_vectors_of_sliced_tables_of_several_chunks(network, drawn, cuts, spare):
    counts, names, _, _ = drawn
    vocabulary, embedder = network
    whole = tokens_of_a_loop(counts, names, vocabulary)
    framed = pa.concat_tables([whole.slice(0, spare), whole, whole.slice(0, spare)]).combine_chunks()
    middle = framed.slice(min(spare, whole.num_rows), whole.num_rows)
    ends = sorted({0, whole.num_rows, *(end for end in cuts if end <= whole.num_rows)})
    pieces = pa.concat_tables([middle.slice(a, b - a) for a, b in pairwise(ends)])
    assert embedder(pieces)[EMBEDDING].to_pylist() == embedder(whole)[EMBEDDING].to_pylist()


def test_obs_of_bytes(network, tmp_path):
    """obs columns of fixed-length bytes, as old tools write them."""
    path = tmp_path / "cells.h5ad"
    write_h5ad(path, np.eye(3, dtype=np.int8), NAMES[:3], "text", "csr")
    with h5py.File(path, "r+") as file:
        attributes = dict(file["obs/column"].attrs)
        del file["obs/column"]
        file["obs/column"] = np.array([b"a", b"bb", b""])
        file["obs/column"].attrs.update(attributes)
    found = read(path, network[0], 2, "column")
    assert found["column"].to_pylist() == ["a", "bb", ""]
