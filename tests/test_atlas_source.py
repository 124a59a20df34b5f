import os
import pickle
import time

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
import tiledbsoma as soma

from scgpt_ray.atlas.anndata_file import AnnDataCells
from scgpt_ray.atlas.genes import harmonize
from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import AtlasError, WorkerError

N_CELLS, N_GENES = 5000, 7
VOCABULARY = {f"G{gene}": 100 + gene for gene in range(N_GENES) if gene != 4}
COLUMNS = ("cell_type", "donor", "n", "weight", "flag")


def atlas(n_cells=N_CELLS, start=0):
    """Cells whose counts say where they belong: 10 * row + gene + 1; each eleventh cell is empty."""
    rows, genes = np.indices((n_cells, N_GENES))
    rows += start
    counts = np.where((rows * 3 + genes) % 4 == 0, 0, 10 * rows + genes + 1).astype(np.float32)
    counts[rows % 11 == 0] = 0
    row = rows[:, 0]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(["T", "B", "NK"])[row % 3]),
            "donor": pd.Series([None if n % 5 == 0 else f"d{n % 4}" for n in row], dtype=object).to_numpy(),
            "n": row.astype(np.int32),
            "weight": row / 7,
            "flag": row % 2 == 0,
        },
        index=pd.Index([f"cell{n}" for n in row]),
    )
    var = pd.DataFrame(
        {"feature_name": [f"G{gene}" for gene in range(N_GENES)]}, index=[f"g{g}" for g in range(N_GENES)]
    )
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def expected(adata, joinids, columns):
    """The slow twin: one cell after the other."""
    counts = adata.X.toarray()
    cells = []
    for row in joinids:
        genes = [gene for gene in range(N_GENES) if gene != 4 and counts[row, gene] > 0]
        obs = {name: adata.obs[name].iloc[row] for name in columns}
        obs = {name: None if value is None or value != value else value for name, value in obs.items()}
        cells.append(
            {
                "soma_joinid": row,
                "obs_id": adata.obs_names[row],
                **obs,
                "gene": [100 + gene for gene in genes],
                "count": [float(counts[row, gene]) for gene in genes],
            }
        )
    return cells


def in_memory(adata, layer, tokens):
    """Cells of an AnnData as a run reads them."""
    source = AnnDataCells.of(adata, layer)
    [partition] = cut(source.joinids(), 10_000)
    return next(source.read(partition, tokens))


def lookup(source):
    return harmonize(
        source.var(),
        VOCABULARY,
        columns=("feature_name",),
        gene_table=None,
        columns_are_default=False,
        where=source.uri,
    ).lookup()


def read(uri, size=4096, **settings):
    """Read all cells as a run does, through a pickled locator."""
    source = pickle.loads(pickle.dumps(locate(str(uri), CellSettings(**settings))))
    tokens = lookup(source)
    return [pa.concat_tables(source.read(partition, tokens)) for partition in cut(source.joinids(), size)]


def rows(tables):
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_soma):
    """The same cells as SOMA (in one write and in three), and as .h5ad in every form."""
    place = tmp_path_factory.mktemp("atlas")
    adata = atlas()
    make_soma(adata, place / "soma")
    for piece in (atlas(3000), atlas(500, 3000), atlas(1500, 3500)):
        make_soma(piece, place / "soma_in_three")

    adata.copy().write_h5ad(place / "csr.h5ad")
    adata.copy().write_h5ad(place / "gzip.h5ad", compression="gzip")
    for name, matrix in {
        "csc": sp.csc_matrix(adata.X),
        "dense": adata.X.toarray(),
        "int": sp.csr_matrix(adata.X, dtype=np.int64),
        "dense_int": adata.X.toarray().astype(np.uint16),
        "double": sp.csr_matrix(adata.X, dtype=np.float64),
    }.items():
        anndata.AnnData(matrix, obs=adata.obs.copy(), var=adata.var).write_h5ad(place / f"{name}.h5ad")
    full = adata.copy()
    full.layers["counts"] = adata.X
    full.layers["csc"] = sp.csc_matrix(adata.X)
    full.raw = adata.copy()
    full = full[:, ::-1].copy()  # of .raw, the genes keep their order
    full.X = sp.csr_matrix(full.X) * 2
    full.write_h5ad(place / "full.h5ad")
    return place


FACES = {
    "soma": {},
    "soma_in_three": {},
    "csr.h5ad": {},
    "gzip.h5ad": {},
    "csc.h5ad": {},
    "dense.h5ad": {},
    "int.h5ad": {},
    "dense_int.h5ad": {},
    "double.h5ad": {},
    "full.h5ad": {"layer": "raw"},
}


@pytest.mark.parametrize("name", FACES)
def test_every_face_gives_the_same_cells(folder, name):
    adata = atlas()
    tables = read(folder / name, obs_columns=COLUMNS, **FACES[name])
    assert [table.num_rows for table in tables] == [2048, 2952]
    assert rows(tables) == expected(adata, range(N_CELLS), COLUMNS)


@pytest.mark.parametrize("layer", ["counts", "csc"])
def test_a_layer_goes_with_var(folder, layer):
    def sorted_cells(cells):
        return [(cell["obs_id"], sorted(zip(cell["gene"], cell["count"], strict=True))) for cell in cells]

    found = sorted_cells(rows(read(folder / "full.h5ad", layer=layer)))
    assert found == sorted_cells(expected(atlas(), range(N_CELLS), ()))


def test_x_and_the_default_of_h5ad(folder):
    counts = [sum(cell["count"]) for cell in expected(atlas(), range(N_CELLS), ())]
    assert [sum(cell["count"]) for cell in rows(read(folder / "full.h5ad", layer="X"))] == [2 * n for n in counts]
    assert [sum(cell["count"]) for cell in rows(read(folder / "full.h5ad"))] == counts, "of the layer `counts`"


def test_types_are_plain_and_the_same(folder):
    [first, *_], [second, *_] = (
        read(folder / "soma", obs_columns=COLUMNS),
        read(folder / "csr.h5ad", obs_columns=COLUMNS),
    )
    assert first.schema.equals(second.schema)
    kinds = ["int64", "string", "string", "string", "int32", "double", "bool"]
    assert [str(kind) for kind in first.schema.types[:-2]] == kinds


FILTERS = [
    ("cell_type == 'T'", lambda obs: obs.cell_type == "T"),
    ("n >= 2040 and n < 2060", lambda obs: obs.n.between(2040, 2059)),
    ("n in [0, 3, 2047, 2048, 4999]", lambda obs: obs.n.isin([0, 3, 2047, 2048, 4999])),
    ("n == 1 or n == 4999", lambda obs: obs.n.isin([1, 4999])),
    ("donor != 'd1' and flag == True", lambda obs: (obs.donor != "d1") & obs.donor.notna() & obs.flag),
]


@pytest.mark.parametrize(("text", "mask"), FILTERS)
@pytest.mark.parametrize("size", [3, 500, 10_000])
def test_filters_and_partition_sizes(folder, text, mask, size):
    if size == 3 and text.startswith(("cell_type", "donor")):
        size = 37
    adata = atlas()
    chosen = np.flatnonzero(mask(adata.obs)).tolist()
    for name in ("soma", "soma_in_three", "csr.h5ad", "csc.h5ad"):
        tables = read(folder / name, size=size, obs_filter=text, obs_columns=("n",))
        assert rows(tables) == expected(adata, chosen, ("n",))
        assert max(table.num_rows for table in tables) <= size


def test_a_filter_column_may_also_be_carried_and_obs_id_named(folder):
    for name in ("soma", "csr.h5ad"):
        [table] = read(folder / name, obs_filter="n < 2 and flag == True", obs_columns=("flag", "obs_id"))
        assert table.column_names == ["soma_joinid", "obs_id", "flag", "gene", "count"]


@pytest.mark.parametrize("name", ["soma", "soma_in_three", "csr.h5ad"])
@pytest.mark.parametrize("text", [None, "cell_type == 'T' and n > 7"])
def test_a_column_of_all_selected_cells(folder, name, text):
    """In the order of the cells, as plain values, with nulls; a column of the filter too."""
    source = locate(str(folder / name), CellSettings(obs_columns=("donor", "cell_type"), obs_filter=text))
    obs = atlas().obs
    obs = obs if text is None else obs[(obs.cell_type == "T") & (obs.n > 7)]
    assert source.column("donor").to_pylist() == obs.donor.to_list()
    assert source.column("donor").type == pa.string()
    assert source.column("cell_type").to_pylist() == obs.cell_type.to_list()


def test_totals(folder):
    counts = atlas().X.toarray().astype(np.float64)
    for name in ("csr.h5ad", "csc.h5ad", "dense.h5ad"):
        source = locate(str(folder / name), CellSettings(obs_filter="cell_type == 'B'"))
        totals, n_cells = source.totals(source.joinids())
        chosen = (atlas().obs.cell_type == "B").to_numpy()
        assert n_cells == chosen.sum()
        assert totals.tolist() == counts[chosen].sum(axis=0).tolist()
    source = locate(str(folder / "soma"), CellSettings())
    totals, n_cells = source.totals(source.joinids())
    sample = np.concatenate(
        [np.linspace(first, last, 512).round().astype(int) for first, last in [(0, 2047), (2048, 4095), (4096, 4999)]]
    )
    assert n_cells == 3 * 512
    assert totals.tolist() == counts[sample].sum(axis=0).tolist()
    few = locate(str(folder / "soma"), CellSettings(obs_filter="n in [5, 7, 4999]"))
    totals, n_cells = few.totals(few.joinids())
    assert (n_cells, totals.tolist()) == (3, counts[[5, 7, 4999]].sum(axis=0).tolist())


def test_genes_without_some_joinids(tmp_path, make_soma):
    """Genes may be deleted from an experiment: the joinids of the others stay as they were."""
    uri = make_soma(atlas(30), tmp_path / "exp")
    with soma.Experiment.open(uri, mode="d") as experiment:
        experiment.var_axis_delete("RNA", value_filter="soma_joinid in [0, 3]")
    source = locate(uri, CellSettings())
    left = [1, 2, 4, 5, 6]
    assert source.var()["feature_name"].tolist() == [f"G{gene}" for gene in left]
    totals, _ = source.totals(source.joinids())
    assert totals.tolist() == atlas(30).X.toarray()[:, left].sum(axis=0).tolist()
    kept = atlas(30)
    kept.X = kept.X.multiply(np.isin(range(N_GENES), left)).tocsr()
    assert rows(read(uri)) == expected(kept, range(30), ())


def test_identity_says_what_changes_the_numbers(folder):
    assert locate(str(folder / "soma"), CellSettings(snapshot=2**42, obs_filter="n > 1")).identity() == {
        "kind": "soma",
        "uri": str(folder / "soma"),
        "snapshot": 2**42,
        "measurement": "RNA",
        "layer": "raw",
        "obs_filter": "n > 1",
        "unique": False,
        "release": None,
    }
    state = (folder / "csr.h5ad").stat()
    assert locate(str(folder / "csr.h5ad"), CellSettings()).identity() == {
        "kind": "h5ad",
        "uri": str(folder / "csr.h5ad"),
        "bytes": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "layer": "X",
        "obs_filter": None,
    }


def test_relative_paths_are_resolved(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert locate("soma", CellSettings()).uri == str(folder / "soma")
    assert locate("./csr.h5ad", CellSettings()).uri == str(folder / "csr.h5ad")


def test_a_snapshot_does_not_see_an_append(tmp_path, make_soma):
    uri = make_soma(atlas(50), tmp_path / "exp")
    time.sleep(0.01)
    before = locate(uri, CellSettings())
    partition = cut(before.joinids(), 100)[0]
    time.sleep(0.01)
    make_soma(atlas(30, 50), tmp_path / "exp")
    assert len(before.joinids()) == 50
    again = locate(uri, CellSettings(snapshot=before.identity()["snapshot"]))
    assert rows(again.read(partition, lookup(again))) == expected(atlas(50), range(50), ())
    now = locate(uri, CellSettings())
    assert len(now.joinids()) == 80
    assert rows(now.read(cut(now.joinids(), 100)[0], lookup(now))) == expected(atlas(80), range(80), ())


def test_a_snapshot_before_the_experiment(folder):
    with pytest.raises(AtlasError, match="snapshot 5"):
        locate(str(folder / "soma"), CellSettings(snapshot=5))


def test_an_atlas_that_changed_under_the_plan(tmp_path, make_soma):
    uri = make_soma(atlas(50), tmp_path / "exp")
    planned = cut(locate(uri, CellSettings()).joinids(), 100)[0]
    other = locate(uri, CellSettings(obs_filter="n != 7"))
    with pytest.raises(WorkerError, match="has changed since the plan was made"):
        next(other.read(planned, lookup(other)))
    file = tmp_path / "cells.h5ad"
    atlas(50).write_h5ad(file)
    source = locate(str(file), CellSettings())
    with pytest.raises(WorkerError, match="has changed since the plan was made"):
        next(locate(str(file), CellSettings(obs_filter="n != 7")).read(planned, lookup(source)))
    tokens = lookup(source)
    os.utime(file, ns=(0, 0))
    with pytest.raises(WorkerError, match="changed during the run"):
        next(source.read(planned, tokens))
    file.unlink()
    with pytest.raises(WorkerError, match="does not exist on this machine"):
        next(source.read(planned, tokens))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("gene", [1, 4])
def test_values_that_are_not_counts(tmp_path, make_soma, value, gene):
    adata = atlas(60)
    dense = adata.X.toarray()
    dense[41, gene] = value
    adata.X = sp.csr_matrix(dense)
    found = {np.nan: "NaN", np.inf: "inf", -1.0: "-1"}[value]
    uri = make_soma(adata, tmp_path / "exp")
    anndata.AnnData(dense, obs=adata.obs.copy(), var=adata.var).write_h5ad(tmp_path / "dense.h5ad")
    adata.copy().write_h5ad(tmp_path / "csr.h5ad")
    for place, cell in {uri: "soma_joinid 41", "dense.h5ad": "cell41", "csr.h5ad": "cell41"}.items():
        source = locate(str(tmp_path / place), CellSettings())
        tokens = lookup(source)
        [partition] = cut(source.joinids(), 100)
        message = rf"cell {cell} has {found} for gene g{gene}; .* with --layer"
        with pytest.raises(AtlasError, match=message):
            source.totals(source.joinids())
        with pytest.raises(AtlasError, match=message):
            next(source.read(partition, tokens))
    with pytest.raises(AtlasError, match=rf"the AnnData: cell cell41 has {found} for gene g{gene};.*there are X\)"):
        in_memory(adata, "X", tokens)


def test_a_file_of_anndata_0_7(tmp_path):
    path = tmp_path / "cells.h5ad"
    atlas(6)[:, :3].copy().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        for name in ("donor", "weight", "flag", "cell_type"):
            del obs[name]
        obs.attrs["encoding-version"] = "0.1.0"
        obs.attrs["column-order"] = np.array(["cell_type", "n"], dtype=h5py.string_dtype())
        obs["__categories/cell_type"] = np.array(["T", "B"], dtype=h5py.string_dtype())
        obs["cell_type"] = np.array([0, 1, -1, 0, 1, 0], np.int8)
        obs["cell_type"].attrs["categories"] = obs["__categories/cell_type"].ref
    with pytest.warns(anndata.OldFormatWarning):
        [table] = read(path, obs_columns=("cell_type",), obs_filter="n > 0")
    assert table["cell_type"].to_pylist() == ["B", None, "T", "B", "T"]


def test_unsorted_and_repeated_indices_within_a_row(tmp_path):
    path = tmp_path / "cells.h5ad"
    matrix = sp.csr_matrix((np.array([3, 1, 2], np.float32), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    var = pd.DataFrame({"feature_name": ["G0", "G1", "G2"]}, index=list("abc"))
    anndata.AnnData(matrix, var=var, obs=pd.DataFrame(index=["c"])).write_h5ad(path)
    [cell] = rows(read(path))
    assert (cell["gene"], cell["count"]) == ([102, 100, 102], [3.0, 1.0, 2.0])


def test_one_cell_without_counts(tmp_path, make_soma):
    adata = atlas(1)
    assert adata.X.nnz == 0
    del adata.obs["donor"]
    adata.copy().write_h5ad(tmp_path / "cells.h5ad")
    make_soma(adata, tmp_path / "exp")
    for name in ("cells.h5ad", "exp"):
        [cell] = rows(read(tmp_path / name))
        assert (cell["gene"], cell["count"]) == ([], [])


def test_an_obs_column_called_obs_id(tmp_path):
    adata = atlas(3)
    adata.obs["obs_id"] = ["x", "y", "z"]
    adata.copy().write_h5ad(tmp_path / "cells.h5ad")
    assert [cell["obs_id"] for cell in rows(read(tmp_path / "cells.h5ad"))] == ["cell0", "cell1", "cell2"]
    for settings in ({"obs_columns": ("obs_id",)}, {"obs_filter": "obs_id == 'x'"}):
        with pytest.raises(AtlasError, match="differs from obs_names"):
            locate(str(tmp_path / "cells.h5ad"), CellSettings(**settings))


def test_soma_remembers_what_the_index_was_called(tmp_path, make_soma):
    adata = atlas(3)
    adata.obs.index.name = "barcode"
    adata.var.index.name = "symbol"
    uri = make_soma(adata, tmp_path / "exp")
    source = locate(uri, CellSettings(obs_columns=("barcode", "obs_id")))
    assert source.var().index.tolist() == [f"g{gene}" for gene in range(N_GENES)]
    [table] = read(uri, obs_columns=("barcode", "obs_id"))
    assert table["obs_id"].to_pylist() == table["barcode"].to_pylist() == ["cell0", "cell1", "cell2"]


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array, lambda x: x.toarray()])
def test_an_anndata_in_memory(form):
    adata = atlas(300)
    tokens = np.array([VOCABULARY.get(f"G{gene}", -1) for gene in range(N_GENES)], np.int32)
    full = anndata.AnnData(form(adata.X) if form is not sp.coo_matrix else adata.X, obs=adata.obs, var=adata.var)
    full.layers["counts"] = form(adata.X) if form is not sp.coo_matrix else adata.X.tocsc()
    full.raw = full.copy()
    for layer in (None, "X", "raw", "counts"):
        assert in_memory(full, layer, tokens).to_pylist() == expected(adata, range(300), ())
    with pytest.raises(AtlasError, match="no layer nope; expected one of X, raw, counts"):
        AnnDataCells.of(full, "nope")
    with pytest.raises(AtlasError, match=r"no layer X; expected one of .none found"):
        AnnDataCells.of(anndata.AnnData(obs=adata.obs), None)
    with pytest.raises(AtlasError, match="the AnnData: no cells"):
        AnnDataCells.of(full[:0], None).joinids()
    assert in_memory(full[10:20], None, tokens)["count"].to_pylist() == [
        cell["count"] for cell in expected(adata, range(10, 20), ())
    ]


def test_real_cells_are_the_same_through_both_faces(shared, tmp_path, make_soma):
    file = shared / "data" / "pbmc3k.h5ad"
    uri = make_soma(anndata.read_h5ad(file), tmp_path / "exp")
    settings = CellSettings(obs_columns=("cell_type",), obs_filter="cell_type != 'unknown'")
    tables = []
    for place in (str(file), uri):
        source = locate(place, settings)
        found = harmonize(
            source.var(),
            {name: token for token, name in enumerate(source.var()["feature_name"])},
            columns=("feature_name",),
            gene_table=None,
            columns_are_default=False,
            where=place,
        )
        assert np.all(found.token >= 0)
        [partition] = cut(source.joinids(), 8192)
        tables.append(pa.concat_tables(source.read(partition, found.lookup())))
    assert tables[0].num_rows == 2638
    assert tables[0].combine_chunks().equals(tables[1].combine_chunks())
