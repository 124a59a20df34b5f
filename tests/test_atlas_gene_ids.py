"""Kinds of gene names, and the table of Ensembl ids."""

import csv
import gzip
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from scgpt_ray.atlas.gene_ids import ENSEMBL_TABLE, GeneIds, kind_of
from scgpt_ray.atlas.genes import coverage, harmonize
from scgpt_ray.errors import GeneCoverageError


def matched(var, tokens, gene_table=None):
    columns = ("feature_name", "index")
    return harmonize(var, tokens, columns=columns, gene_table=gene_table, columns_are_default=True, where="atlas")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["ENSG00000141510", "ENSG00000141510.18", "TP53"], GeneIds.HUMAN_ENSEMBL),
        (["ENSMUSG00000059552.7", "ENSMUSG00000059552"], GeneIds.MOUSE_ENSEMBL),
        (["ENSRNOG00000010756", "ENSDARG00000035559"], GeneIds.OTHER_ENSEMBL),
        (["Trp53", "Cd3e", "mt-Nd1", "H2-K1", "0610005C21Rik", "Gm1992", "ACTB"], GeneIds.MOUSE_SYMBOLS),
        (["7157", "916"], GeneIds.NUMBERS),
        (["TP53", "CD3E", "MT-ND1", "C1orf112", "HLA-A", "AL627309.1", "RP11-34P13.7", None], None),
        (["TP53", "Trp53"], None),
        ([], None),
    ],
)
def test_kinds(names, kind):
    assert kind_of(names) is kind


def test_the_vocabulary_is_of_no_such_kind(shared):
    assert kind_of(json.loads((shared / "data" / "default_census_vocab.json").read_text())) is None


def test_the_table(shared):
    assert Path(ENSEMBL_TABLE).stat().st_size < 700_000
    with gzip.open(ENSEMBL_TABLE, "rt") as stream:
        pairs = list(csv.reader(stream))
    vocabulary = json.loads((shared / "data" / "default_census_vocab.json").read_text())
    assert len(dict(pairs)) == len(pairs) == 40_425
    assert {name for _, name in pairs} <= vocabulary.keys()
    for gene_id, name in (("ENSG00000141510", "TP53"), ("ENSG00000198851", "CD3E"), ("ENSG00000156738", "MS4A1")):
        assert dict(pairs)[gene_id] == name


def test_ensembl_ids_of_real_cells_cover_what_their_symbols_do(shared):
    adata = anndata.read_h5ad(shared / "data" / "pbmc3k.h5ad")
    adata = adata[:, adata.var["feature_id"].str.startswith("ENSG")]
    vocabulary = json.loads((shared / "data" / "default_census_vocab.json").read_text())
    per_gene = np.asarray(adata.X.sum(axis=0), np.float64).ravel()
    ids = matched(adata.var[["feature_id"]].set_index("feature_id"), vocabulary)
    symbols = matched(adata.var[["symbol_gencode44"]].set_index("symbol_gencode44"), vocabulary)
    found = coverage(ids, per_gene, adata.n_obs)
    assert found.fraction > 0.99
    assert found.fraction >= coverage(symbols, per_gene, adata.n_obs).fraction
    assert found.summary().startswith("the gene names look like human Ensembl gene ids, translated by the table that")
    both = (ids.token >= 0) & (symbols.token >= 0)
    assert (ids.token[both] == symbols.token[both]).mean() > 0.999


def test_symbols_are_not_translated_by_the_table():
    """A column of symbols comes before ids in the index, whose translation would change the tokens."""
    var = pd.DataFrame({"feature_name": ["old", "CD3E"]}, index=["ENSG00000141510", "ENSG00000198851"])
    found = matched(var, {"TP53": 0, "CD3E": 1})
    assert (found.token.tolist(), found.is_translated) == ([-1, 1], False)
    assert matched(var[[]], {"TP53": 0, "CD3E": 1}).token.tolist() == [0, 1]


def test_a_table_that_is_given_is_used_alone(tmp_path):
    (tmp_path / "t.csv").write_text("ENSG00000141510,CD3E\n")
    var = pd.DataFrame(index=["ENSG00000141510", "ENSG00000198851.1"])
    found = matched(var, {"TP53": 0, "CD3E": 1}, str(tmp_path / "t.csv"))
    assert (found.token.tolist(), found.is_translated) == ([1, -1], False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Cd3e", "Trp53"], "look like mouse symbols; expected at least 50%; .*human: give --gene-table a CSV"),
        (["ENSMUSG00000059552", "ENSMUSG00000032093"], "mouse Ensembl gene ids; .*orthologue"),
        (["ENSG00000999999", "ENSG00000999998"], "human Ensembl gene ids, translated .*; name the column of gene sym"),
        (["916", "7157"], "numbers, as NCBI gene ids are; .* a CSV of gene id and symbol"),
        (["cd3e", "tp53"], r"\(0 of 2 genes match\); expected at least 50%; name the column of gene symbols"),
    ],
)
def test_too_few_counts_say_what_the_names_look_like(names, message):
    found = coverage(matched(pd.DataFrame(index=names), {"TP53": 0, "CD3E": 1}), np.ones(2), 1)
    with pytest.raises(GeneCoverageError, match=message):
        found.require(0.5, "atlas")
