"""The drop-in against numbers that upstream's own function computed, and its arguments."""

import anndata
import numpy as np
import pytest

import scgpt_ray
from scgpt_ray.errors import AtlasError, ConfigError, GeneCoverageError

GOLDEN = ["flash_names", "torch_names", "cp_classes", "heads64"]


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDEN)
def test_embed_data_gives_upstreams_numbers(shared, name):
    folder = shared / "golden" / name
    embedded = scgpt_ray.embed_data(folder / "cells_distinct.h5ad", folder / "checkpoint", device="cpu")
    expected = np.load(folder / "cells_distinct.X_scGPT.npy")
    assert embedded.obsm["X_scGPT"].dtype == np.float32
    assert np.abs(embedded.obsm["X_scGPT"] - expected).max() <= 1e-5
    original = anndata.read_h5ad(folder / "cells_distinct.h5ad")
    assert list(embedded.obs_names) == list(original.obs_names)
    assert original.n_vars - embedded.n_vars == 7, "seven columns are not in the vocabulary, on purpose"


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDEN)
def test_the_flow_gives_upstreams_numbers(shared, tmp_path, name):
    folder = shared / "golden" / name
    scgpt_ray.embed(
        executor="serial",
        atlas=str(folder / "cells_distinct.h5ad"),
        checkpoint=str(folder / "checkpoint"),
        output=str(tmp_path / "out"),
        cells_per_partition=20,
    )
    from scgpt_ray.parts.export import read_embeddings
    from scgpt_ray.parts.parts import vectors_of
    from scgpt_ray.storage import Folder

    _, found = vectors_of(read_embeddings(Folder.at(tmp_path / "out")))
    assert np.abs(found - np.load(folder / "cells_distinct.X_scGPT.npy")).max() <= 1e-5


def test_a_new_anndata_has_the_embeddings_as_x(blood, checkpoint):
    new = scgpt_ray.embed_data(
        blood, checkpoint, obs_to_save=["cell_type"], device="cpu", return_new_adata=True, batch_size=3
    )
    kept = scgpt_ray.embed_data(blood, checkpoint, device="cpu")
    assert new.shape == (260, 32)
    assert list(new.obs) == ["cell_type"]
    np.testing.assert_array_equal(new.X, kept.obsm["X_scGPT"])
    assert kept.shape == (260, 60)
    assert "X_scGPT" not in blood.obsm, "the given cells are left as they are"


def test_cells_without_genes_get_nan(blood, checkpoint):
    vectors = scgpt_ray.embed_data(blood, checkpoint, device="cpu").obsm["X_scGPT"]
    assert np.flatnonzero(np.isnan(vectors).all(axis=1)).tolist() == [5, 77]
    assert np.isnan(vectors).any(axis=1).sum() == 2


def test_too_few_counts_of_the_vocabulary_are_an_error(blood, checkpoint):
    """Upstream embeds what is left of other names, such as of another species, without a word."""
    other = blood.copy()
    other.var["feature_name"] = [name if row < 5 else name.lower() for row, name in enumerate(other.var.feature_name)]
    with pytest.raises(GeneCoverageError, match=r"the AnnData: genes of the vocabulary hold [0-9.]+% of the counts"):
        scgpt_ray.embed_data(other, checkpoint, device="cpu")
    vectors = scgpt_ray.embed_data(other, checkpoint, device="cpu", min_coverage=0.01).obsm["X_scGPT"]
    assert np.isfinite(vectors).all(axis=1).any()


def test_the_index_may_name_the_genes(blood, checkpoint):
    renamed = blood.copy()
    renamed.var_names = renamed.var.pop("feature_name").astype(str)
    np.testing.assert_array_equal(
        scgpt_ray.embed_data(renamed, checkpoint, gene_col="index", device="cpu").obsm["X_scGPT"],
        scgpt_ray.embed_data(blood, checkpoint, device="cpu").obsm["X_scGPT"],
    )


def test_mistakes_are_told(blood, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"obs_to_save tissue; expected columns of obs \(cell_type, donor\)"):
        scgpt_ray.embed_data(blood, checkpoint, obs_to_save="tissue", device="cpu")
    with pytest.raises(AtlasError, match="var has no column symbol"):
        scgpt_ray.embed_data(blood, checkpoint, gene_col="symbol", device="cpu")
    (tmp_path / "torn.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(AtlasError, match=r"torn.h5ad.*expected a complete .h5ad file"):
        scgpt_ray.embed_data(tmp_path / "torn.h5ad", checkpoint, device="cpu")


def test_the_exported_members_are_what_can_be_imported():
    assert all(callable(getattr(scgpt_ray, name)) for name in scgpt_ray.__all__ if name != "tl")
    with pytest.raises(AttributeError, match="no attribute 'embedd'"):
        _ = scgpt_ray.embedd
