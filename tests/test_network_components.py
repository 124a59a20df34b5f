"""Principal components as an encoder: the projection against its definition, and files that are not what they say."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgpt_ray.errors import CheckpointError, WorkerError
from scgpt_ray.network.cell_encoder import read_encoder
from scgpt_ray.network.checkpoint import random_checkpoint, read_checkpoint
from scgpt_ray.network.checkpoint_files import COMPONENTS_FILE, VOCABULARY_FILE, CheckpointFiles, n_components
from scgpt_ray.network.components import write_components
from scgpt_ray.schema import EMBEDDING
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import TokenRules, canonical_counts
from scgpt_ray.tokenizer.vocabulary import Vocabulary

N_GENES, VARIABLE = 30, np.array([1, 4, 5, 20, 29], np.int32)
VOCABULARY = Vocabulary({f"G{number}": number for number in range(N_GENES)})
MEAN, ROWS = np.array([0.5, 1.0, 0.25, 2.0, 3.0]), np.linalg.qr(np.random.default_rng(0).normal(size=(5, 3)))[0].T


def written(folder, token=VARIABLE, mean=MEAN, rows=ROWS):
    write_components(Folder.at(folder), VOCABULARY, token, mean, rows, {"cells": 9})
    return folder


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    return read_encoder(written(tmp_path_factory.mktemp("components")))


def cells_table(cells):
    """CELLS of a list of {gene: count}, in the order of the dict."""
    genes, counts = ([list(part(cell)) for cell in cells] for part in (dict.keys, dict.values))
    return pa.table(
        {
            "soma_joinid": pa.array(np.arange(len(cells)) + 100),
            "tissue": pa.array(["lung"] * len(cells)),
            "gene": pa.array(genes, pa.list_(pa.int32())),
            "count": pa.array(counts, pa.list_(pa.float32())),
        }
    )


def embed(components, cells):
    return components(components.tokenizer(TokenRules())(cells, components.vocabulary))


def defined(cell):
    """The vector of a cell, from the definition, or None."""
    total = sum(cell.values())
    if not total:
        return None
    values = np.log1p([1e4 * cell.get(int(gene), 0) / total for gene in VARIABLE])
    vector = ROWS @ (values - MEAN)
    return vector / np.linalg.norm(vector)


cell = st.dictionaries(st.integers(0, N_GENES - 1), st.integers(0, 50).map(float), max_size=N_GENES)


@settings(max_examples=30, deadline=None)
@given(st.lists(cell, max_size=12), st.data())
def test_a_vector_is_that_of_the_definition_however_the_table_is_cut(components, cells, data):
    """Empty cells, cells of one gene, zeros, genes in any order; sliced tables of several chunks."""
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(cells))] * 2)))
    table = cells_table(cells)
    chunks = pa.concat_tables([table.slice(0, first), table.slice(first, last - first), table.slice(last)])
    whole, sliced = (embed(components, each) for each in (chunks, chunks.slice(first)))
    assert whole.column_names == ["soma_joinid", "tissue", "n_genes", "content_digest", EMBEDDING]
    assert whole["n_genes"].to_pylist() == [sum(count > 0 for count in cell.values()) for cell in cells]
    for found, cell in zip(whole[EMBEDDING].to_pylist(), cells, strict=True):
        expected = defined(cell)
        assert (found is None) == (expected is None)
        if found is not None:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for found, expected in zip(sliced[EMBEDDING].to_pylist(), whole[EMBEDDING].to_pylist()[first:], strict=True):
        assert (found is None) == (expected is None)
        np.testing.assert_allclose(found or [], expected or [], rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(cell, min_size=1, max_size=6), st.randoms())
def test_counts_are_canonical_and_their_digest_is_that_of_the_set(cells, random):
    def shuffled(cell):
        return dict(random.sample(list(cell.items()), len(cell)))

    counts, again = (canonical_counts(cells_table(each), VOCABULARY) for each in (cells, list(map(shuffled, cells))))
    sets = [{gene: count for gene, count in sorted(cell.items()) if count} for cell in cells]
    assert [
        dict(zip(*pair, strict=True))
        for pair in zip(counts["gene"].to_pylist(), counts["count"].to_pylist(), strict=True)
    ] == sets
    assert counts.equals(again)
    digests = counts["content_digest"].to_pylist()
    assert [digest == 0 for digest in digests] == [not each for each in sets]
    assert len(set(digests)) == len({tuple(each.items()) for each in sets})


def test_repeated_genes_are_summed():
    table = pa.table({"soma_joinid": [1], "gene": [[7, 3, 7]], "count": [[2.0, 0.0, 3.0]]}).cast(
        cells_table([]).drop_columns(["tissue"]).schema
    )
    (row,) = canonical_counts(table, VOCABULARY).to_pylist()
    assert (row["n_genes"], row["gene"], row["count"]) == (1, [7], [5.0])


def test_a_cell_whose_projection_has_no_direction_is_no_cell(tmp_path):
    """That of the mean itself: without counts of variable genes, where their mean is zero."""
    zero = read_encoder(written(tmp_path, mean=np.zeros(5)))
    with pytest.raises(WorkerError, match="the projection of cell 101 is zero"):
        embed(zero, cells_table([{1: 1.0}, {2: 1.0}]))


def test_the_identity_names_the_numbers_and_no_rule_of_tokens(components, tmp_path):
    mine = components.identity(TokenRules(max_length=9), "float32", "cls")
    other = read_encoder(written(tmp_path, rows=-ROWS)).identity(TokenRules(), "float32", "mean")
    assert mine.keys() == other.keys() == {"encoder", "weights", "vocabulary", "count_rules", "precision"}
    assert [name for name in mine if mine[name] != other[name]] == ["weights"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"token": VARIABLE[::-1].copy()}, "not among the 33"),
        ({"token": VARIABLE + np.int32(4)}, "not among the 33"),
        ({"mean": MEAN[:4]}, r"5 genes, but arrays of \(4,\)"),
        ({"rows": ROWS * np.nan}, "not finite"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, found):
    with pytest.raises(CheckpointError, match=found):
        read_encoder(written(tmp_path, **change))


def test_damaged_and_missing_files_are_refused(components, tmp_path):
    place = written(tmp_path)
    pinned = CheckpointFiles(str(place), components.files.sha256)
    (place / VOCABULARY_FILE).write_text(json.dumps({"G0": 0}))
    with pytest.raises(CheckpointError, match="sha256"):
        read_encoder(pinned)
    (place / COMPONENTS_FILE).write_bytes(b"{")
    with pytest.raises(CheckpointError, match=COMPONENTS_FILE):
        read_encoder(place)


def test_a_network_is_no_components_and_the_other_way_round(checkpoint, components, tmp_path):
    assert read_encoder(checkpoint).width == 32
    with pytest.raises(CheckpointError, match="holds principal components"):
        read_checkpoint(components.files)
    random_checkpoint(tmp_path, ["G1"], embsize=4, nheads=1, d_hid=4, nlayers=1)
    written(tmp_path)
    with pytest.raises(CheckpointError, match=f"both best_model.pt and {COMPONENTS_FILE}"):
        read_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "n"), [("pca", 50), ("pca:7", 7), ("pca:0", None), ("pca:", None), ("./pca", None), ("demo", None)]
)
def test_names(name, n):
    assert n_components(name) == n
    if n:
        with pytest.raises(CheckpointError, match="yet to be fitted"):
            CheckpointFiles.at(name)
