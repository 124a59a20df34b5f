"""The promises on real cells: blood cells and the 60,694 genes of the published vocabulary, random weights."""

import json

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import scgpt_ray
from scgpt_ray.network.checkpoint import random_checkpoint
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.schema import EMBEDDING, OBS_ID
from scgpt_ray.storage import Folder

pytestmark = pytest.mark.slow

GENE_COLUMNS = ["feature_name", "symbol_gencode44"]
N_CELLS = 600


@pytest.fixture(scope="module")
def network(shared, tmp_path_factory):
    """A small network for the whole vocabulary, so that cells have hundreds of tokens and some are sampled."""
    folder = tmp_path_factory.mktemp("network")
    genes = json.loads((shared / "data" / "default_census_vocab.json").read_text())
    random_checkpoint(folder, sorted(genes, key=genes.get), embsize=32, nheads=2, d_hid=32, nlayers=2)
    return str(folder)


@pytest.fixture(scope="module")
def some_cells(shared, tmp_path_factory):
    """Writes the longest cells of a file, which are sampled, and others at random: some_cells(name) -> path."""
    folder = tmp_path_factory.mktemp("cells")

    def write(name):
        cells = anndata.read_h5ad(shared / "data" / f"{name}.h5ad")
        order = np.argsort(-np.diff(cells.X.tocsr().indptr), kind="stable")
        rows = np.r_[order[:30], np.random.default_rng(0).choice(order[30:], N_CELLS - 30, replace=False)]
        cells[np.sort(rows)].copy().write_h5ad(folder / f"{name}.h5ad")
        return str(folder / f"{name}.h5ad")

    return write


@pytest.fixture(scope="module")
def pbmc3k(some_cells):
    return some_cells("pbmc3k")


@pytest.fixture(scope="module")
def reference(pbmc3k, network, tmp_path_factory):
    output = tmp_path_factory.mktemp("pbmc3k") / "out"
    manifest = scgpt_ray.embed(
        executor="serial",
        atlas=pbmc3k,
        checkpoint=network,
        output=str(output),
        gene_columns=GENE_COLUMNS,
    )
    assert manifest.n_cells == N_CELLS
    assert manifest.coverage["fraction"] > 0.995
    return output


def vectors(output):
    table = read_embeddings(Folder.at(output))
    return dict(zip(table[OBS_ID].to_pylist(), np.stack(table[EMBEDDING].to_numpy()), strict=True))


@pytest.mark.ray
def test_a_vector_depends_on_the_cell_alone(local_ray, reference, pbmc3k, network, tmp_path):
    """Cells shuffled, genes permuted, cut into two files, another partition size; two actors, and one process."""
    random = np.random.default_rng(3)
    cells = anndata.read_h5ad(pbmc3k)
    shuffled = cells[random.permutation(cells.n_obs)][:, random.permutation(cells.n_vars)]
    found = {}
    for name, executor, piece in (("a", "ray", shuffled[:250]), ("b", "serial", shuffled[250:])):
        piece.write_h5ad(tmp_path / f"{name}.h5ad")
        scgpt_ray.embed(
            executor=executor,
            atlas=str(tmp_path / f"{name}.h5ad"),
            checkpoint=network,
            output=str(tmp_path / name),
            gene_columns=GENE_COLUMNS,
            actors=2,
            cells_per_partition=47,
        )
        found |= vectors(tmp_path / name)
    expected = vectors(reference)
    assert found.keys() == expected.keys()
    worst = max(np.abs(found[name] - vector).max() for name, vector in expected.items())
    assert worst <= 1e-6


def test_facs_sorted_cells_label_pbmc3k(some_cells, pbmc3k, network, tmp_path):
    """The whole mapping runs on real cells; random weights promise nothing about its quality."""
    scgpt_ray.embed(
        executor="serial",
        atlas=some_cells("pbmc_facs"),
        checkpoint=network,
        output=str(tmp_path / "facs"),
        gene_columns=GENE_COLUMNS,
        obs_columns=["cell_type_coarse"],
    )
    scgpt_ray.build_index(
        executor="serial", embeddings=str(tmp_path / "facs"), output=str(tmp_path / "index"), shards=3
    )
    mapped = scgpt_ray.map_query(
        executor="serial",
        query=pbmc3k,
        index=str(tmp_path / "index"),
        checkpoint=network,
        output=str(tmp_path / "mapped"),
        gene_columns=GENE_COLUMNS,
        truth_column="cell_type_coarse",
    )
    labels = anndata.read_h5ad(pbmc3k).obs["cell_type_coarse"]
    assert mapped.scores.n == (labels != "unknown").sum() > 0.9 * N_CELLS
    assert 0 < mapped.scores.accuracy < 1
    for name in ("predictions.parquet", "query.h5ad", "metrics.json", "report.html"):
        assert (tmp_path / "mapped" / name).stat().st_size > 0
    # Plain libraries open everything.
    predictions = pd.read_parquet(tmp_path / "mapped" / "predictions.parquet")
    assert predictions["cell_type_coarse"].notna().all()
    assert predictions["cell_type_coarse_confidence"].between(0, 1).all()
    query = anndata.read_h5ad(tmp_path / "mapped" / "query.h5ad")
    assert query.obsm["X_scGPT"].shape == (N_CELLS, 32)
    assert list(query.obs_names) == pq.read_table(tmp_path / "mapped" / "predictions.parquet")["obs_id"].to_pylist()
    assert scgpt_ray.validate(embeddings=str(tmp_path / "facs")) == []
    assert scgpt_ray.validate(index=str(tmp_path / "index")) == []


def test_stimulated_cells_withdraw_the_promise(shared, tmp_path, caplog):
    """Three datasets as the reference, two of which the checkpoint was trained on; no labels of the query are read."""
    parts = []
    for name in ("pbmc3k", "zheng_sorted", "pbmc_facs", "kang_ctrlstim"):
        cells = anndata.read_h5ad(shared / "data" / f"{name}.h5ad")
        usable = (
            cells.obs["condition"] == "stim" if name == "kang_ctrlstim" else cells.obs["cell_type_coarse"] != "HSPC"
        )
        cells = cells[np.random.default_rng(0).permutation(np.flatnonzero(usable))[:200]].copy()
        cells.var_names = cells.var["feature_name"].astype(str)
        parts.append(cells[:, ~cells.var_names.duplicated()])
    together = anndata.concat(parts, join="outer", index_unique="-")
    together.var["feature_name"] = together.var_names
    together.obs = together.obs[["dataset", "cell_type_coarse"]]
    together.write_h5ad(tmp_path / "cells.h5ad")
    common = {"checkpoint": "demo", "executor": "serial"}
    scgpt_ray.embed(
        atlas=str(tmp_path / "cells.h5ad"), obs_filter="dataset != 'kang_ctrlstim'", max_length=300,
        obs_columns=["dataset", "cell_type_coarse"], output=str(tmp_path / "embeddings"), **common,
    )  # fmt: skip
    scgpt_ray.build_index(
        embeddings=str(tmp_path / "embeddings"), output=str(tmp_path / "index"), executor="serial",
        label_columns=["dataset", "cell_type_coarse"],
    )  # fmt: skip
    mapped = scgpt_ray.map_query(
        query=str(tmp_path / "cells.h5ad"), obs_filter="dataset == 'kang_ctrlstim'", index=str(tmp_path / "index"),
        output=str(tmp_path / "mapped"), calibrate_by="dataset", target_error=0.3, **common,
    )  # fmt: skip
    promise = mapped.promises["cell_type_coarse"]
    assert promise.withdrawn
    assert promise.positions["nearness"].beyond
    assert promise.trained == (
        "the checkpoint was trained on cell types of pbmc_facs, zheng_sorted, which the reference holds"
    )
    assert mapped.to_dict()["promises_withdrawn"] == ["cell_type_coarse"]
    written = json.loads((tmp_path / "mapped" / "metrics.json").read_bytes())["promises"]["cell_type_coarse"]
    assert written["withdrawn"]
    for text in (caplog.text, mapped.text(), (tmp_path / "mapped" / "report.html").read_text()):
        assert "For this query the promise is withdrawn (error of at most 30.0%): its cells are farther" in text
