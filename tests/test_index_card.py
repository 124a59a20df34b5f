"""The card of an index."""

import pytest
import yaml

from scgpt_ray.identity import Fingerprint
from scgpt_ray.index.card import index_card
from scgpt_ray.parts.provenance import Provenance
from scgpt_ray.records import IndexDescription, ShardDescription

LABELS = {"cell_type": {"B": 7, "T|NK": 11, None: 2}}


def card(labels=LABELS, checkpoint="brain", cells=None, **changes):
    fingerprint = Fingerprint({"weights": "w"}, {"uri": "s3://bucket/atlas", **(cells or {})})
    values = {
        "request": {},
        "factory": "IVF8,SQ8",
        "d": 512,
        "n_cells": 20,
        "nprobe": 3,
        "rerank": 40,
        "recall_at_10": 0.9712,
        "recall_queries": 256,
        "shards": (ShardDescription.of(0, 20, is_exact=False),),
        "label_columns": tuple(labels),
        "fingerprint": fingerprint,
        "embeddings": "/home/someone/embeddings",
        "checkpoint": "demo",
        **changes,
    }
    return index_card(IndexDescription(**values), Provenance(fingerprint, checkpoint, 0.9), labels)


def test_head_and_facts():
    _, head, body = card(license="As the atlas").split("---\n", 2)
    head = yaml.safe_load(head)
    assert (head["license"], head["license_name"], head["size_categories"]) == ("other", "As the atlas", ["n<1K"])
    assert body.startswith("\n# Index of s3://bucket/atlas\n")
    assert "* **Recall@10**: 0.9712, measured on 256 cells against exact search (nprobe 3, rerank 40;" in body
    assert "* **Index**: `IVF8,SQ8`, 1 shards, width 512, cosine\n" in body
    assert "* **Licence**: As the atlas\n" in body
    assert "/home/someone" not in body


def test_labels_are_counted():
    table = "| label | cells |\n|---|---|\n| T\\|NK | 11 |\n| B | 7 |\n| not stated | 2 |\n"
    assert f"`cell_type`, 2 labels\n\n{table}" in card()
    many = card({"donor": {f"d{number:02d}": 40 - number for number in range(30)}})
    assert "| d24 | 16 |\n| 5 others | 65 |\n" in many
    assert "d25" not in many
    assert "`barcode`: more than 10,000 values, as identifiers of cells have." in card({"barcode": None})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "scgpt-ray map --query cells.h5ad --index . --checkpoint brain --output ../mapped\n"),
        ({"checkpoint": "not stated"}, "--checkpoint CHECKPOINT --output"),
        ({"labels": {}}, "No labels are stored"),
        ({"cells": {"highly_variable": 2000}}, "`map` refuses this index"),
        ({"appended": ("/x", "/y")}, "* **Cells**: of 3 runs of `embed` on this atlas; the first: all cells\n"),
    ],
)
def test_how_to_map(options, said):
    assert said in card(**options)
