import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scgpt_ray.atlas.obs_filter import Combination, Comparison, parse
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError

OBS = pd.DataFrame(
    {
        "cat": pd.Categorical(["a", "b", None, "a", "c", "b"]),
        "txt": ["x", "y", "z", "x", "y", "z"],
        "gap": ["x", None, "z", "x", None, "z"],
        "num": [1, 2, 3, 4, 5, 6],
        "small": np.array([1, 2, 3, 4, 5, 6], np.int8),
        "flt": [1.0, np.nan, 3, 4, 5, 6],
        "half": np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], np.float32),
        "flag": [True, False, True, True, False, False],
        "icat": pd.Categorical([1, 2, 1, 2, 3, 3]),
        "size": pd.Categorical(["lo", "hi", "lo", "hi", "lo", None], categories=["lo", "hi"], ordered=True),
        "nint": pd.array([1, None, 3, 4, 5, 6], dtype="Int64"),
        "nbool": pd.array([True, None, False, True, True, True], dtype="boolean"),
        "my col": [1, 1, 1, 2, 2, 2],
    },
    index=pd.Index([f"c{n}" for n in range(6)], name="obs_id"),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory, make_soma):
    """The same cells as an .h5ad file and as a SOMA experiment."""
    folder = tmp_path_factory.mktemp("filter")
    adata = anndata.AnnData(sp.csr_matrix(np.eye(6, dtype=np.float32)), obs=OBS)
    adata.copy().write_h5ad(folder / "cells.h5ad")
    make_soma(adata, folder / "soma")
    return str(folder / "cells.h5ad"), str(folder / "soma")


def selected(uri, text):
    try:
        return locate(uri, CellSettings(obs_filter=text)).joinids().tolist()
    except AtlasError as error:
        assert error.found.endswith("selects no cell"), error
        return []


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("cat == 'a'", [0, 3]),
        ("'a' == cat", [0, 3]),
        ("cat != 'a'", [1, 4, 5]),
        ("cat in ['a', 'zz']", [0, 3]),
        ("cat not in ['a', 'zz']", [1, 4, 5]),
        ("cat == 'zz'", []),
        ("cat != 'zz'", [0, 1, 3, 4, 5]),
        ("not cat == 'a'", [1, 4, 5]),
        ("not (cat in ['a'])", [1, 4, 5]),
        ("not (cat not in ['a'])", [0, 3]),
        ("txt == 'y'", [1, 4]),
        ("gap != 'x'", [2, 5]),
        ("gap not in ['x']", [2, 5]),
        ("num > 2 and num <= 5", [2, 3, 4]),
        ("2 < num < 5", [2, 3]),
        ("not (2 < num < 5)", [0, 1, 4, 5]),
        ("not not num > 2", [2, 3, 4, 5]),
        ("not (cat == 'a' or num > 5)", [1, 4]),
        ("not (cat == 'a' and flt > 2)", [0, 1, 4, 5]),
        ("cat == 'a' or cat == 'b' and num > 2", [0, 3, 5]),
        ("(cat == 'a' or cat == 'b') and num > 2", [3, 5]),
        ("num >= 1e0 and num < 3.0", [0, 1]),
        ("num in [1, 2.0]", [0, 1]),
        ("num > -1", [0, 1, 2, 3, 4, 5]),
        ("small >= 5", [4, 5]),
        ("flt != 1", [2, 3, 4, 5]),
        ("not flt > 2", [0]),
        ("flt in [1, 3]", [0, 2]),
        ("flt not in [1]", [2, 3, 4, 5]),
        ("half == 0.1", [0]),
        ("half > 0.5", [5]),
        ("flag == True", [0, 2, 3]),
        ("flag != True", [1, 4, 5]),
        ("flag in [True]", [0, 2, 3]),
        ("flag not in [True]", [1, 4, 5]),
        ("flag in [True, False]", [0, 1, 2, 3, 4, 5]),
        ("icat == 1", [0, 2]),
        ("icat in [1, 3]", [0, 2, 4, 5]),
        ("size < 'hi'", [0, 2, 4]),
        ("size >= 'lo'", [0, 1, 2, 3, 4]),
        ("size == 'hi'", [1, 3]),
        ("nint > 2", [2, 3, 4, 5]),
        ("not nint > 2", [0]),
        ("nint != 1", [2, 3, 4, 5]),
        ("nbool == True", [0, 3, 4, 5]),
        ("nbool != True", [2]),
        ('attr("my col") == 2', [3, 4, 5]),
        ("attr('my col') in [2]", [3, 4, 5]),
        ("obs_id == 'c1'", [1]),
        ("soma_joinid < 2", [0, 1]),
        ("  num == 1\n", [0]),
    ],
)
def test_a_filter_selects_the_same_cells_of_both(both, text, rows):
    h5ad, experiment = both
    assert selected(h5ad, text) == rows
    assert selected(experiment, text) == rows


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cat ==", "does not parse"),
        ("cat == 'a", "does not parse"),
        ("   ", "does not parse"),
        ("cat == 'a'\x00", "does not parse"),
        ("nope == 1", "no column nope; obs has "),
        ("attr('no pe') == 1", "no column no pe; obs has "),
        ("cat is 'a'", "`is` is not a comparison"),
        ("cat", "cat is not a comparison"),
        ("not flag", "flag is not a comparison"),
        ("True", "True is not a comparison"),
        ("cat == 'a' & num > 1", "is not a value"),
        ("num == small", "small is not a value (text needs quotes)"),
        ("num + 1 > 2", "num + 1 is not a column"),
        ("1 == 1", "1 is not a column"),
        ("'a' in cat", "'a' is not a column"),
        ("cat in 'a'", "is not membership in a list"),
        ("cat in ('a', 'b')", "is not membership in a list"),
        ("cat in []", "is not membership in a list"),
        ("cat in [txt]", "txt is not a value"),
        ("cat == None", "None is not a value"),
        ("cat == b'a'", "b'a' is not a value"),
        ("num == 1e400", "is not a value"),
        ("num == -'a'", "-'a' is not a value"),
        ("num == 10 ** 2", "is not a value"),
        ("__import__('os').system('true') == 1", "is not a column"),
        ("num == 'a'", "num has type int64, which does not fit 'a'"),
        ("num in [1, 'a']", "num has type int64, which does not fit 'a'"),
        ("num == 1.5", "num has type int64, which does not fit 1.5"),
        ("num == True", "num has type int64, which does not fit True"),
        ("small == 300", "small has type int8, which does not fit 300"),
        ("num == 100000000000000000000", "num has type int64, which does not fit 1"),
        ("txt == 1", "which does not fit 1"),
        ("cat == 1", "which does not fit 1"),
        ("flt != 'x'", "flt has type double, which does not fit 'x'"),
        ("flag == 1", "flag has type bool, which does not fit 1"),
        ("flag > False", "the values of flag have no order"),
        ("cat < 'b'", "the values of cat have no order"),
        ("icat > 1", "the values of icat have no order"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused_by_both(both, text, found):
    for uri in both:
        with pytest.raises(AtlasError) as error:
            locate(uri, CellSettings(obs_filter=text))
        assert found in error.value.found
        assert error.value.found.startswith(f"{uri}: obs filter ")


SIMPLE = st.sampled_from(
    ["cat == 'a'", "cat not in ['b']", "gap != 'x'", "num > 3", "flt <= 4", "size < 'hi'", "flag == True"]
)
NESTED = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
    ),
    max_leaves=6,
)


@given(text=NESTED)
def test_nested_filters_select_the_same_cells_of_both(both, text):
    h5ad, experiment = both
    assert selected(h5ad, text) == selected(experiment, text)


@pytest.mark.parametrize(("text", "rows"), [("txt < 'y'", [0, 3]), ("'y' <= txt", [1, 2, 4, 5])])
def test_text_has_an_order_where_it_is_not_a_category(both, text, rows):
    # anndata writes text as categories, tiledbsoma.io as text.
    _, experiment = both
    assert selected(experiment, text) == rows
    table = pa.table({"txt": OBS["txt"]})
    assert np.flatnonzero(parse(text, table.schema, "atlas").mask(table)).tolist() == rows


def test_not_turns_comparisons_around():
    schema = pa.schema([("a", pa.int64()), ("b", pa.bool_())])
    condition = parse("not (a == 1 or b in [True, False])", schema, "atlas")
    terms = (Comparison("a", "!=", (1,)), Comparison("b", "not in", (True, False)))
    assert condition == Combination("and", terms)
    assert condition.columns() == {"a", "b"}
    assert condition.columns() == {"a", "b"}


@pytest.mark.parametrize("text", ["flt != 1", "not flt == 1", "flt not in [1]", "flt > 1"])
def test_nan_is_a_missing_value(text):
    table = pa.table({"flt": [1.0, float("nan"), 3.0, None]})
    assert parse(text, table.schema, "atlas").mask(table).tolist() == [False, False, True, False]
