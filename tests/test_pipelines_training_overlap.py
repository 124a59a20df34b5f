from dataclasses import dataclass, field

import pytest

from scgpt_ray.identity import Fingerprint
from scgpt_ray.network.checkpoint import read_checkpoint
from scgpt_ray.pipelines.training_overlap import TRAINING_SETS, training_overlap
from scgpt_ray.records import IndexDescription

[CP] = TRAINING_SETS


@dataclass
class Weights:
    """The part of a checkpoint that is read."""

    weights_sha256: str = "0" * 64
    training_sets: tuple[str, ...] = ()
    cell_types: tuple[str, ...] = field(default=("B cell", "T cell"))


def index(uri="/data/atlas", obs_filter=None, embeddings="/out/e"):
    cells = {"uri": uri, "obs_filter": obs_filter}
    return IndexDescription(
        request={}, factory="Flat", d=2, n_cells=0, nprobe=1, rerank=0, recall_at_10=1.0, recall_queries=0,
        shards=(), label_columns=(), fingerprint=Fingerprint({}, cells), embeddings=embeddings, checkpoint="demo",
    )  # fmt: skip


LABELS = {"T": 90, "B": 10, None: 900}


@pytest.mark.parametrize(
    ("checkpoint", "reference", "values", "labels", "found"),
    [
        (Weights(CP), index(), ["x"], LABELS, None),
        (Weights(CP), index("s3://bucket/Tabula_Sapiens.h5ad"), ["x"], LABELS, "of Tabula Sapiens, which"),
        (Weights(), index("s3://bucket/Tabula_Sapiens.h5ad"), ["x"], LABELS, None),
        (Weights(CP), index(), ["a", "53d208b0-2cfd-4366-9866-c3c6114081bc"], LABELS, "of 53d208b0-2cfd-4366"),
        (
            Weights(CP),
            index(obs_filter="dataset_id == '53d208b0-2cfd-4366-9866-c3c6114081bc'"),
            [],
            LABELS,
            "of 53d208b0",
        ),
        (
            Weights(training_sets=("pbmc_facs", "pbmc_facs", "zheng")),
            index("/d/pbmc_facs.h5ad"),
            [],
            LABELS,
            "of pbmc_fa",
        ),
        (Weights(training_sets=("pbmc_facs",)), index("/d/pbmc_facs2.h5ad"), ["pbmc"], LABELS, None),
        (
            Weights(training_sets=("kang",)),
            index(),
            ["kang/d101", "other"],
            LABELS,
            "of kang, which",
        ),
        # Most labels are called as the checkpoint's: by cells, without those that have none.
        (Weights(), index(), [], {"T cell": 50, "NK": 50, None: 900}, "names 50% of the reference's labels have"),
        (Weights(), index(), [], {"T cell": 49, "NK": 51}, None),
        (Weights(cell_types=()), index(), [], {None: 5}, None),
    ],
)
def test_training_on_the_reference_is_recognised(checkpoint, reference, values, labels, found):
    said = training_overlap(checkpoint, reference, values, labels)
    assert said is None if found is None else found in said


def test_the_shipped_checkpoint_says_what_it_was_trained_on():
    demo = read_checkpoint("demo")
    assert demo.training_sets == ("pbmc_facs", "zheng_sorted", "kang_ctrl_12k")
    said = training_overlap(demo, index(), ["pbmc_facs", "pbmc3k", "kang_ctrl_12k"], LABELS)
    assert said == "the checkpoint was trained on cell types of pbmc_facs, kang_ctrl_12k, which the reference holds"
