import json
from dataclasses import replace

import pytest

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index.description import IndexDescription
from scgpt_ray.index.shard import ShardDescription

DESCRIPTION = IndexDescription(
    request={"factory": "IVF8,SQ8", "seed": 0},
    factory="IVF8,SQ8",
    d=512,
    n_cells=30,
    nprobe=4,
    rerank=16,
    recall_at_10=0.96875,
    recall_queries=256,
    shards=(
        ShardDescription.of(0, 10, is_exact=False),
        ShardDescription.of(1, 20, is_exact=True),
    ),
    label_columns=("cell_type", "spécial"),
    fingerprint={"model": {"weights": "ab12", "max_length": 1200}},
    embeddings="s3://bucket/embeddings",
    appended=("s3://bucket/more",),
)


def test_a_description_survives_the_file():
    content = DESCRIPTION.to_json()
    assert IndexDescription.from_json(content, "index.json") == DESCRIPTION
    assert IndexDescription.from_json(content, "index.json").to_json() == content
    assert json.loads(content)["metric"] == "cosine"


def test_a_whole_number_of_recall_survives():
    perfect = replace(DESCRIPTION, recall_at_10=1.0)
    assert IndexDescription.from_json(perfect.to_json(), "index.json") == perfect


def changed(**values):
    return json.dumps({**json.loads(DESCRIPTION.to_json()), **values}).encode()


def without(name):
    return json.dumps({key: value for key, value in json.loads(DESCRIPTION.to_json()).items() if key != name}).encode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "format_version None"),
        (b"{}", "format_version None"),
        (changed(format_version=1), "format_version 1"),
        (changed(d="512"), "d is '512'"),
        (changed(nprobe=1.5), "nprobe"),
        (changed(n_cells=True), "n_cells"),
        (changed(n_cells=31), "31 cells"),
        (changed(shards=[{"name": "a"}]), "n_cells"),
        (changed(shards=[{"name": "a", "n_cells": "30", "labels": "b"}]), "n_cells"),
        (changed(shards=["a"]), "missing, unknown or mistyped"),
        (changed(label_columns=[1]), "0 is 1"),
        (changed(metric="l2"), "metric"),
        (changed(appended=[1]), "0 is 1"),
        (changed(rerank=None), "rerank"),
        (changed(surprise=1), "surprise"),
        (without("factory"), "factory"),
        (without("metric"), "metric"),
    ],
)
def test_a_strange_file_is_refused_with_its_place(content, problem):
    with pytest.raises(ReferenceSetError, match=problem) as caught:
        IndexDescription.from_json(content, "/data/index/index.json")
    assert str(caught.value).startswith("/data/index/index.json ")
