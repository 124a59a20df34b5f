"""Highly variable genes: those that scanpy selects."""

import sys

import anndata
import numpy as np
import pytest
from scipy import sparse

from scgpt_ray.errors import ConfigError, InputError
from scgpt_ray.evaluation.variable_genes import variable_genes

sc = pytest.importorskip("scanpy", reason="needs scanpy: pip install 'scgpt-ray[eval]'")
pytest.importorskip("skmisc", reason="needs scikit-misc: pip install 'scgpt-ray[eval]'")


def values(n_cells=150, n_genes=80, seed=0):
    """Counts of genes of which every fifth differs between halves of the cells, in no order; ten genes come twice."""
    random = np.random.default_rng(seed)
    rates = random.gamma(2.0, 2.0, (2, n_genes)) * np.where(np.arange(n_genes) % 5, 1.0, [[0.2], [4.0]])
    rates[:, np.arange(n_genes) % 5 > 0] = rates[0, np.arange(n_genes) % 5 > 0]
    counts = random.poisson(rates[np.arange(n_cells) % 2]).astype(np.float32)
    return sparse.csr_matrix(np.hstack([counts, counts[:, :10]]))


@pytest.mark.parametrize("n_genes", [7, 20])
@pytest.mark.parametrize("flavor", ["seurat_v3", "seurat"])
def test_those_that_scanpy_marks_in_place(flavor, n_genes):
    values_NG = values() if flavor == "seurat_v3" else sparse.csr_matrix(np.log1p(values().toarray()))
    cells = anndata.AnnData(values_NG.copy())
    sc.pp.highly_variable_genes(cells, n_top_genes=n_genes, flavor=flavor)
    found = variable_genes(values_NG, n_genes, flavor)
    np.testing.assert_array_equal(found, cells.var["highly_variable"])


def test_genes_that_differ_between_cells_come_first():
    found = variable_genes(values(), 18, "seurat_v3")
    assert found.sum() == 18
    assert (np.flatnonzero(found) % 5 == 0).mean() > 0.8


def test_all_genes_if_there_are_no_more():
    assert variable_genes(values(), 90, "seurat_v3").all()


def test_values_that_are_no_counts_are_ranked_without_a_warning():
    assert variable_genes(values() * 0.5, 5, "seurat_v3").sum() == 5


def test_too_few_cells_to_rank_genes():
    with pytest.raises(InputError, match="genes cannot be ranked: 9 genes have 2 different means over 3 cells"):
        variable_genes(sparse.csr_matrix(np.eye(3, 9, dtype=np.float32)), 2, "seurat_v3")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skmisc.loess", None)
    with pytest.raises(ConfigError, match=r"scikit-misc.*pip install 'scgpt-ray\[eval\]'"):
        variable_genes(values(), 5, "seurat_v3")
