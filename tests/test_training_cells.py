"""The cells that the shipped network is trained on."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from jobs.training_cells import LEAST_COUNTS, UNKNOWN, at_depths, one_name

N, GENES = 1000, 40


@pytest.fixture
def cells():
    """Shallow cells of type a, deep ones of type b, each with half of the genes, and deep ones without a type."""
    random = np.random.default_rng(0)
    labels = np.repeat(["a", "b", UNKNOWN], N)
    rate = np.where(labels == "a", 20.0, 200.0)[:, None] * np.ones(GENES)
    rate[labels == "a", : GENES // 2] = 0
    rate[labels == "b", GENES // 2 :] = 0
    counts = sparse.csr_matrix(random.poisson(rate).astype(np.float32))
    return ad.AnnData(counts, pd.DataFrame({"cell_type": labels}, index=[f"c{number}" for number in range(3 * N)]))


def test_depth_does_not_depend_on_the_type(cells):
    drawn = at_depths(cells, np.random.default_rng(0))
    total, label = np.asarray(drawn.X.sum(1)).ravel(), drawn.obs["cell_type"].to_numpy()
    shallow, deep = total[label == "a"], total[label == "b"]
    quantiles = np.linspace(0.1, 0.9, 5)
    assert np.quantile(shallow, quantiles) == pytest.approx(np.quantile(deep, quantiles), rel=0.25)
    assert np.quantile(shallow, 0.9) > 4 * cells[label == "a"].X.sum(1).max()
    assert np.median(total) > LEAST_COUNTS


def test_only_cells_of_one_type_are_added(cells):
    drawn = at_depths(cells, np.random.default_rng(0))
    label = cells.obs["cell_type"].to_numpy()
    assert drawn[label == "a"].X[:, : GENES // 2].nnz == 0
    assert drawn[label == "b"].X[:, GENES // 2 :].nnz == 0
    thinned = label == UNKNOWN
    assert (drawn[thinned].X > cells[thinned].X).nnz == 0
    assert (drawn.obs_names == cells.obs_names).all()


def test_names_are_those_of_all_data_sets_and_monocytes_are_no_cd34_cells():
    genes = pd.DataFrame({"feature_name": ["LYZ", "CD34"]}, index=["1", "2"])
    counts = sparse.csr_matrix(np.array([[0, 9], [9, 1], [9, 1], [0, 9]], np.float32))
    cells = ad.AnnData(
        counts, pd.DataFrame({"cell_type": ["CD34+", "CD34+", "CD14+", "new"]}, index=list("abcd")), genes
    )
    assert one_name(cells, {"CD34+": "CD34+", "CD14+": "monocyte"}) == ["CD34+", UNKNOWN, "monocyte", UNKNOWN]
