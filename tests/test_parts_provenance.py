"""What published files say of where embeddings come from."""

import pytest

from scgpt_ray.identity import Fingerprint
from scgpt_ray.network.published import PUBLISHED
from scgpt_ray.parts.provenance import Provenance, checkpoint_name, markdown_list

WHOLE_HUMAN = PUBLISHED["whole-human"].files["best_model.pt"].sha256
CENSUS = {
    "kind": "soma",
    "uri": "s3://bucket/2025-11-08/soma/census_data/homo_sapiens",
    "snapshot": 1_700_000_000_000,
    "obs_filter": "tissue == 'blood'",
    "unique": True,
    "release": "2025-11-08",
}


def provenance(cells, coverage=0.973):
    return Provenance(Fingerprint({"weights": "w", "precision": "float32"}, cells), "brain", coverage)


@pytest.mark.parametrize(
    ("cells", "atlas", "version", "selected"),
    [
        (
            CENSUS,
            "census:2025-11-08/homo_sapiens",
            ", as of 2023-11-14 22:13:20 UTC",
            "`tissue == 'blood'`, without duplicates (`is_primary_data`)",
        ),
        ({"uri": "s3://bucket/atlas", "snapshot": 1000}, "s3://bucket/atlas", ", as of 1970-01-01 00:00:01 UTC", "all"),
        ({"uri": "/home/someone/cells.h5ad", "bytes": 12_345}, "cells.h5ad", ", 12,345 bytes", "all"),
    ],
)
def test_the_atlas(cells, atlas, version, selected):
    facts = provenance(cells).facts()
    assert facts["Atlas"] == f"`{atlas}`{version}"
    assert facts["Cells"] == ("all cells" if selected == "all" else selected)


def test_the_other_facts():
    text = markdown_list(provenance(CENSUS | {"highly_variable": 3000}).facts())
    assert "* **Checkpoint**: scGPT `brain`, SHA-256 of the weights `w`\n* **Precision**: float32\n" in text
    assert "* **Gene coverage**: 97.3% of the counts are of genes in the vocabulary\n" in text
    assert "* **Genes**: 3000 highly variable genes" in text
    assert provenance(CENSUS, None).facts()["Gene coverage"] == "not stated"


@pytest.mark.parametrize(
    ("weights", "asked", "name"),
    [
        (WHOLE_HUMAN, "/home/someone/scgpt", "whole-human"),
        ("other", "brain", "brain"),
        ("other", "demo", "demo"),
        ("other", "hf://owner/repo@v1", "hf://owner/repo@v1"),
        ("other", "/home/someone/scgpt", "scgpt"),
        ("other", "", "not stated"),
    ],
)
def test_the_name_of_a_checkpoint(weights, asked, name):
    assert checkpoint_name(weights, asked) == name
