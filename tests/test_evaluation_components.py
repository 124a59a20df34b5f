"""The baseline of principal components."""

import numpy as np
import pytest
from scipy import sparse

from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.components import N_COMPONENTS, N_GENES, fit_components, hvg_pca, log1p_cp10k

pytest.importorskip("scanpy", reason="needs scanpy: pip install 'scgpt-ray[eval]'")


def counts(n_cells=120, n_genes=300, seed=0):
    random = np.random.default_rng(seed)
    rates = random.gamma(0.5, 2.0, (3, n_genes))
    return sparse.csr_matrix(random.poisson(rates[np.arange(n_cells) % 3]).astype(np.float32))


def test_logs_of_counts_per_ten_thousand():
    logs = log1p_cp10k(sparse.csr_matrix(np.array([[1, 0, 3], [0, 0, 0], [5, 0, 0]], np.float32)))
    assert logs.dtype == np.float32
    np.testing.assert_allclose(logs.toarray(), np.log1p([[2500, 0, 7500], [0, 0, 0], [10_000, 0, 0]]), rtol=1e-6)


def test_other_cells_are_projected_as_the_fitted_ones():
    logs_NG = log1p_cp10k(counts())
    components, found_NC = fit_components(logs_NG, 7, seed=0)
    assert found_NC.shape == (120, 7)
    np.testing.assert_allclose(components.transform(logs_NG[30:50]), found_NC[30:50], atol=1e-3)


def test_components_are_those_of_scaled_log_counts():
    counts_NG = counts()
    found = hvg_pca(counts_NG, seed=0)
    assert (found.shape, found.dtype) == ((120, N_COMPONENTS), np.float32)
    dense = counts_NG.toarray()
    logs = np.log1p(dense / dense.sum(axis=1, keepdims=True) * 1e4)
    own = logs - logs.mean(axis=0)
    left, values, _ = np.linalg.svd(own, full_matrices=False)
    components = (left * values)[:, :N_COMPONENTS]
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), values[:N_COMPONENTS], rtol=1e-4)
    np.testing.assert_allclose(found @ found.T, components @ components.T, atol=0.02 * values[0])


def test_a_factor_on_a_cells_counts_changes_nothing():
    counts_NG = counts()
    scaled = sparse.diags(np.arange(120) % 4 + 1.0) @ counts_NG
    first, second = hvg_pca(counts_NG, seed=0), hvg_pca(sparse.csr_matrix(scaled), seed=0)
    np.testing.assert_allclose(np.abs(first), np.abs(second), atol=1e-2)


def test_only_variable_genes_count():
    flat = sparse.csr_matrix(np.random.default_rng(1).poisson(1.0, (120, N_GENES + 500)).astype(np.float32))
    with_groups = sparse.hstack([counts(), flat], format="csr")
    found = hvg_pca(with_groups, seed=0)
    kinds = np.arange(120) % 3
    centres = np.stack([found[kinds == kind].mean(axis=0) for kind in range(3)])
    assert (np.argmin(np.linalg.norm(found[:, None] - centres, axis=-1), axis=1) == kinds).all()


def test_few_cells_or_genes_have_fewer_components():
    assert hvg_pca(counts(n_cells=20), seed=0).shape == (20, 19)
    assert hvg_pca(counts(n_genes=9), seed=0).shape[1] == 8


@pytest.mark.parametrize(("value", "told"), [(0.5, "the value 0.5"), (-1, "the value -1"), (np.nan, "the value nan")])
def test_what_is_no_count_is_refused(value, told):
    counts_NG = counts()
    counts_NG.data[7] = value
    with pytest.raises(InputError, match=told):
        hvg_pca(counts_NG, seed=0)


def test_a_cell_without_counts_is_refused():
    counts_NG = counts().tolil()
    counts_NG[5] = 0
    with pytest.raises(InputError, match="1 of 120 cells have no counts"):
        hvg_pca(counts_NG.tocsr(), seed=0)
