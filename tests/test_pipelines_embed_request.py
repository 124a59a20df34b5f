"""A request to embed, checked without Ray: which snapshot it means, and what an earlier run left."""

import time

import anndata
import numpy as np
import pytest

from scgpt_ray.atlas.plan import cut
from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import OutputError
from scgpt_ray.pipelines.embed_request import check
from scgpt_ray.records import Plan


def begin(job):
    """Write the plan of a checked request, as a run does before it reads cells; returns it."""
    joinids, coverage = job.selection
    plan = Plan(
        fingerprint=job.fingerprint,
        settings=job.settings.model_dump(mode="json"),
        partitions=cut(joinids, 50),
        coverage=coverage.to_dict(),
        created="",
    )
    plan.write(job.output)
    return plan


def test_an_unfinished_run_goes_on_with_its_snapshot(blood, checkpoint, make_soma, tmp_path):
    """Cells appended between the two runs are not seen, unless a later snapshot is named, which is another run."""
    atlas = make_soma(blood[:100].copy(), tmp_path / "atlas")
    options = {"atlas": atlas, "checkpoint": str(checkpoint), "output": str(tmp_path / "out")}
    time.sleep(0.01)  # snapshots are in milliseconds
    first = check(EmbedSettings(**options))
    assert first.began is None
    plan = begin(first)
    time.sleep(0.01)
    make_soma(blood[100:150].copy(), tmp_path / "atlas")

    again = check(EmbedSettings(**options))
    assert (again.began, again.done, again.selection) == (plan, None, None)
    assert again.fingerprint == first.fingerprint
    assert again.source.identity()["snapshot"] == first.source.identity()["snapshot"]
    assert len(again.source.joinids()) == plan.n_cells == 100

    elsewhere = check(EmbedSettings(**options | {"output": str(tmp_path / "new")}))
    assert len(elsewhere.source.joinids()) == 150
    with pytest.raises(OutputError, match=r"holds run .*, this is .*snapshot.*; give --output another folder"):
        check(EmbedSettings(**options, snapshot=elsewhere.source.identity()["snapshot"]))


def test_highly_variable_genes_are_part_of_the_request(blood_file, checkpoint, tmp_path):
    pytest.importorskip("skmisc", reason="needs scikit-misc: pip install 'scgpt-ray[eval]'")
    import scanpy as sc

    options = {"atlas": str(blood_file), "checkpoint": str(checkpoint), "output": str(tmp_path / "out")}
    whole = check(EmbedSettings(**options))
    job = check(EmbedSettings(**options, highly_variable=20))
    cells = anndata.read_h5ad(blood_file)
    sc.pp.highly_variable_genes(cells, n_top_genes=20, flavor="seurat_v3")
    expected = np.where(cells.var["highly_variable"], whole.genes.token, -1)
    np.testing.assert_array_equal(job.genes.token, expected)
    assert (job.genes.token >= 0).sum() > 10
    assert "highly_variable" not in whole.fingerprint.cells
    ranked = {"highly_variable": 20, "flavor": "seurat_v3", "rank_by": "stored"}
    assert {name: job.fingerprint.cells[name] for name in ranked} == ranked
    assert job.selection[1].genes_matched == whole.selection[1].genes_matched, "coverage is that of all genes"
    begin(job)
    assert check(EmbedSettings(**options, highly_variable=20)).fingerprint == job.fingerprint
    with pytest.raises(OutputError, match="highly_variable: 30 against 20"):
        check(EmbedSettings(**options, highly_variable=30))


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
def test_genes_are_ranked_over_the_selected_cells_by_the_named_values(blood_file, checkpoint, tmp_path):
    pytest.importorskip("scanpy", reason="needs scanpy: pip install 'scgpt-ray[eval]'")
    import scanpy as sc

    options = {"atlas": str(blood_file), "checkpoint": str(checkpoint), "output": str(tmp_path / "out")}
    ranking = {"highly_variable": 15, "flavor": "seurat", "rank_by": "log1p"}
    cells = anndata.read_h5ad(blood_file)
    is_t = cells.obs["cell_type"] == "T"
    tokens = []
    for chosen, obs_filter in ((cells, None), (cells[is_t].copy(), "cell_type == 'T'")):
        sc.pp.normalize_total(chosen, target_sum=1e4)
        sc.pp.log1p(chosen)
        sc.pp.highly_variable_genes(chosen, n_top_genes=15, flavor="seurat")
        job = check(EmbedSettings(**options, **ranking, obs_filter=obs_filter))
        found = job.genes.token >= 0
        assert not (found & ~chosen.var["highly_variable"].to_numpy()).any()
        assert found.sum() >= 10
        tokens.append(job.genes.token.tolist())
    assert tokens[0] != tokens[1]
