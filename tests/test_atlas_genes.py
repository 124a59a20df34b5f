import gzip
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from scgpt_ray.atlas.genes import VAR_JOINID, GeneMap, coverage, harmonize
from scgpt_ray.errors import AtlasError, ConfigError, GeneCoverageError, ReferenceSetError

TOKENS = {"A": 0, "B": 1, "C": 2, "<pad>": 3, "<cls>": 4, "<eoc>": 5}


def genes(var, columns=("feature_name", "index"), gene_table=None, default=False):
    return harmonize(var, TOKENS, columns=columns, gene_table=gene_table, columns_are_default=default, where="atlas")


def frame(**columns):
    index = columns.pop("index")
    return pd.DataFrame(columns, index=index)


def test_the_first_column_that_matches_names_the_gene():
    var = frame(index=["A", "x1", "C", "x3"], feature_name=["B", "C", "old", "old2"])
    found = genes(var)
    assert found.token.tolist() == [1, 2, 2, -1]
    assert found.name == ("B", "C", "C", "old2")
    assert found.column == ("feature_name", "feature_name", "index", "")
    assert found.token.dtype == np.int32
    assert genes(var, columns=("index", "feature_name")).token.tolist() == [0, 2, 2, -1]


@pytest.mark.parametrize("kind", [object, "category", "string"])
def test_missing_values_never_match(kind):
    var = frame(index=["x", "B", "y"], feature_name=pd.Series(["A", None, np.nan], dtype=kind).array)
    found = genes(var)
    assert found.token.tolist() == [0, 1, -1]
    assert found.name == ("A", "B", "y")


def test_special_tokens_are_no_genes():
    assert genes(frame(index=["<pad>", "<cls>", "<eoc>", "A"]), default=True).token.tolist() == [
        -1,
        -1,
        -1,
        0,
    ]


def test_values_that_are_not_text():
    assert genes(frame(index=[7, 8], feature_name=["A", 9])).token.tolist() == [0, -1]


def test_a_named_column_that_is_not_there():
    var = frame(index=["A"], symbol=["B"])
    with pytest.raises(AtlasError, match="atlas: var has no column feature_name; expected one of index, symbol"):
        genes(var)
    assert genes(var, default=True).token.tolist() == [0]


def test_a_column_called_index_is_not_the_index():
    assert genes(pd.DataFrame({"index": ["B"]}, index=["A"]), columns=("index",)).token.tolist() == [0]


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
@pytest.mark.parametrize("header", ["", "gene_id,gene_name\n", "\ufeffgene_id,gene_name\n"])
def test_a_gene_table_translates_what_does_not_match(tmp_path, name, header):
    text = header + "ENSG00000000001.7,B\nENSG00000000002,nothing\nold,C\n\n"
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as stream:
        stream.write(text)
    var = frame(index=["ENSG00000000001.12", "ENSG00000000001", "ENSG00000000002", "old", "A"])
    found = genes(var, columns=("index",), gene_table=str(tmp_path / name))
    assert found.token.tolist() == [1, 1, -1, 2, 0]
    assert found.name == ("B", "B", "ENSG00000000002", "C", "A")
    assert found.column == ("index", "index", "", "index", "index")


def test_a_translation_in_an_earlier_column_comes_before_a_later_column(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("old,C\n")
    assert genes(frame(index=["A"], feature_name=["old"]), gene_table=str(table)).name == ("C",)


def test_only_ensembl_ids_lose_a_version(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("AC1,B\n")
    assert genes(frame(index=["AC1.1"]), columns=("index",), gene_table=str(table)).token.tolist() == [-1]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"a,b\nc\n", "line 2: 1 columns"),
        (b"a,b,c\n", "line 1: 3 columns"),
        (b"x,A\nx,B\n", "line 2: x has the symbol B, and A in an earlier line"),
        (b"\xff\xfe,A\n", "codec"),
        (None, "No such file"),
    ],
)
def test_a_bad_gene_table(tmp_path, content, found):
    table = tmp_path / "t.csv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(ConfigError, match=found):
        genes(frame(index=["A"]), default=True, gene_table=str(table))


def test_a_gene_table_that_is_not_gzip(tmp_path):
    table = tmp_path / "t.csv.gz"
    table.write_text("a,b\n")
    with pytest.raises(ConfigError, match="gzip"):
        genes(frame(index=["A"]), default=True, gene_table=str(table))


def test_joinids_with_gaps():
    var = frame(index=["A", "B", "x"], soma_joinid=[70, 80, 90])
    assert genes(var, default=True).joinid.tolist() == [0, 1, 2], "a leftover column is not the joinid"
    found = genes(var.assign(**{VAR_JOINID: [1, 4, 6]}), default=True)
    assert found.lookup().tolist() == [-1, 0, -1, -1, 1, -1, -1]
    assert found.lookup().dtype == np.int32
    assert VAR_JOINID not in found.var_columns


def test_var_without_rows():
    found = genes(frame(index=[]), default=True)
    assert found.lookup().tolist() == []
    assert GeneMap.from_table(found.to_table()).name == ()


def test_the_table_comes_back():
    found = genes(frame(index=["A", "x"], feature_name=["q", None]).assign(**{VAR_JOINID: [3, 5]}))
    table = found.to_table()
    assert table.to_pylist() == [
        {"soma_joinid": 3, "name": "A", "column": "index", "token": 0},
        {"soma_joinid": 5, "name": "x", "column": "", "token": None},
    ]
    again = GeneMap.from_table(table)
    assert again.digest() == found.digest()
    assert (again.name, again.column, again.var_columns) == (found.name, found.column, ("feature_name",))
    assert again.lookup().tolist() == found.lookup().tolist()
    for wrong in (table.drop_columns(["name"]), table.replace_schema_metadata(None)):
        with pytest.raises(ReferenceSetError, match="gene table"):
            GeneMap.from_table(wrong)


def test_the_digest_follows_tokens_and_their_places():
    def digest(index, joinids):
        return genes(frame(index=index).assign(**{VAR_JOINID: joinids}), default=True).digest()

    assert digest(["A", "x"], [0, 1]) == digest(["A", "y"], [0, 1])
    assert len({digest(["A", "B"], [0, 1]), digest(["B", "A"], [0, 1]), digest(["A", "B"], [0, 2])}) == 3


def measured(counts, n_cells=5):
    var = frame(index=["A", "x", "B", "B2", "y"], feature_name=["A", "x", "B", "B", "y"])
    return coverage(genes(var), np.array(counts, np.float64), n_cells)


def test_coverage_counts():
    result = measured([10, 30, 20, 20, 20])
    assert (result.genes_total, result.genes_matched) == (5, 3)
    assert result.fraction == 0.5
    assert result.collisions == ("B",)
    assert result.missing == (("x", 0.3), ("y", 0.2))
    assert result.per_column == {"feature_name": 3}
    assert result.to_dict()["fraction"] == 0.5
    assert result.summary().splitlines() == [
        "3 of 5 genes are in the vocabulary (feature_name 3)",
        "50.0% of the counts belong to them, measured on 5 cells",
        "1 genes have several var rows, whose counts are summed: B",
        "genes outside the vocabulary with the most counts: x 30.00%, y 20.00%",
    ]


def test_at_most_ten_missing_genes_are_named_and_none_without_counts():
    var = frame(index=[f"x{n}" for n in range(20)])
    result = coverage(genes(var, default=True), np.arange(20.0), 1)
    assert [name for name, _ in result.missing] == [f"x{n}" for n in range(19, 9, -1)]
    assert measured([1, 0, 1, 1, 0]).missing == ()


def test_too_little_coverage_says_what_to_do():
    measured([10, 30, 20, 20, 20]).require(0.5, "atlas")
    with pytest.raises(GeneCoverageError) as error:
        measured([10, 30, 20, 20, 20]).require(0.51, "atlas")
    for word in (
        "atlas: ",
        "50.0% of the counts",
        "51%",
        "--gene-columns",
        "feature_name",
        "--gene-table",
        "--min-cov",
    ):
        assert word in str(error.value)


@pytest.mark.parametrize(("columns", "shown"), [((), "(var has index)"), (("symbol",), "(var has index, symbol)")])
def test_too_little_coverage_names_the_columns_of_var(columns, shown):
    with pytest.raises(GeneCoverageError) as error:
        replace(measured([10, 30, 20, 20, 20]), var_columns=columns).require(0.51, "atlas")
    assert shown in str(error.value)


def test_no_counts_at_all():
    result = measured([0, 0, 0, 0, 0])
    assert result.fraction == 0
    for minimum in (0.0, 0.5):
        with pytest.raises(GeneCoverageError, match="have no counts"):
            result.require(minimum, "atlas")


def test_old_symbols_of_real_cells_are_found_through_a_second_column(shared):
    import json

    import anndata

    tokens = json.loads((shared / "data/default_census_vocab.json").read_text())
    adata = anndata.read_h5ad(shared / "data/pbmc3k.h5ad")
    totals = np.asarray(adata.X.sum(axis=0), np.float64).reshape(-1)

    def fraction(columns, table=None):
        found = harmonize(
            adata.var, tokens, columns=columns, gene_table=table, columns_are_default=False, where="pbmc3k"
        )
        return coverage(found, totals, adata.n_obs).fraction

    assert fraction(("feature_name",)) == pytest.approx(0.964, abs=0.002)
    assert fraction(("feature_name", "symbol_gencode44")) == pytest.approx(0.998, abs=0.001)
    table = str(shared / "data/gencode_v44_id2name.csv.gz")
    assert fraction(("feature_id",)) > 0.98, "with the table that ships"
    assert fraction(("feature_id",), table) > 0.98
    assert pa.types.is_int32(genes(frame(index=["A"]), default=True).to_table()["token"].type)
