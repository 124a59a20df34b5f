"""The JSON files of output folders: they come back as they were, and anything else is refused in one line."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from scgpt_ray.atlas.plan import cut
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.records import CommitMarker, IndexDescription, Manifest, Plan, PretrainRequest, ShardDescription
from scgpt_ray.storage import Folder

FINGERPRINT = Fingerprint(model={"weights": "ab12", "max_length": 1200}, cells={"uri": "atlas", "snapshot": None})

PLAN = Plan(
    created="2026-01-01T00:00:00+00:00",
    fingerprint=FINGERPRINT,
    settings={"seed": 3},
    coverage={"fraction": 0.9},
    partitions=cut(np.arange(10), 3, tile=8),
)
MANIFEST = Manifest(
    fingerprint=FINGERPRINT,
    n_cells=10,
    n_quarantined=0,
    n_empty=1,
    n_tokens=50,
    dimension=8,
    obs_columns=["kind"],
    parts={"part-00000.parquet": 4, "part-00001.parquet": 6},
    digests=["a", "b"],
    coverage={"fraction": 0.9},
    versions={"ray": "2"},
)
INDEX = IndexDescription(
    request={"factory": "IVF8,SQ8", "seed": 0},
    factory="IVF8,SQ8",
    d=512,
    n_cells=30,
    nprobe=4,
    rerank=16,
    recall_at_10=0.96875,
    recall_queries=256,
    shards=(ShardDescription.of(0, 10, is_exact=False), ShardDescription.of(1, 20, is_exact=True)),
    label_columns=("cell_type", "spécial"),
    fingerprint=FINGERPRINT,
    embeddings="s3://bucket/embeddings",
    checkpoint="demo",
    appended=("s3://bucket/more",),
)
MARKER = CommitMarker(request="ab", shard=INDEX.shards[1], bytes={"shard-00001.faiss": 5})
REQUEST = PretrainRequest(
    settings={"learning_rate": 1e-4, "mask_ratios": [0.25, 0.5]},
    atlases=[{"uri": "a", "snapshot": 5}],
    vocabulary="cd",
    checkpoint=None,
    token_rules=1,
)
RECORDS = [PLAN, MANIFEST, INDEX, MARKER, REQUEST]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.file)
def test_a_record_comes_back(record, tmp_path):
    folder, kind = Folder.at(tmp_path), type(record)
    assert kind.read(folder) is None
    record.write(folder)
    assert folder.names() == [record.file]
    assert kind.read(folder) == record
    assert kind.read(folder).to_json() == record.to_json()


def test_a_whole_number_of_recall_comes_back():
    perfect = INDEX.replace(recall_at_10=1.0)
    assert IndexDescription.from_json(perfect.to_json(), "index.json") == perfect


def test_an_empty_plan_comes_back():
    empty = PLAN.replace(partitions=())
    assert (Plan.from_json(empty.to_json(), "plan.json"), empty.n_cells, PLAN.n_cells) == (empty, 0, 10)


def test_a_plan_is_compact():
    plan = PLAN.replace(partitions=cut(np.arange(100_000), 100))
    assert len(plan.to_json()) < 100 * len(plan.partitions)


def test_a_changed_copy_is_checked_too():
    assert MANIFEST.replace(n_tokens=51) == MANIFEST.model_copy(update={"n_tokens": 51})
    with pytest.raises(ValidationError, match="11 cells, 1 of them empty, but 10 rows in its parts"):
        MANIFEST.replace(n_cells=11)
    with pytest.raises(ValidationError, match="frozen"):
        MANIFEST.n_cells = 10


def altered(record, **changes):
    return json.dumps({**json.loads(record.to_json()), **changes}).encode()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.file)
def test_what_is_not_the_whole_file_is_refused(record):
    content = record.to_json()
    contents = [b"", b"{", b"[]", b"{}", b"\xff\xfe", content[:-5], altered(record, surplus=1)]
    values = json.loads(content)
    contents += [json.dumps({k: v for k, v in values.items() if k != key}).encode() for key in values]
    for wrong in contents:
        with pytest.raises(ReferenceSetError, match=rf"^out/file.json cannot be used: .*; {record.remedy}$"):
            type(record).from_json(wrong, "out/file.json")


ROWS = json.loads(PLAN.to_json())["partitions"]
FILES = json.loads(INDEX.to_json())["shards"]


def rows(place, **changes):
    return altered(PLAN, partitions=[row | changes if n == place else row for n, row in enumerate(ROWS)])


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        (Plan, b"{", "Invalid JSON"),
        (Plan, altered(PLAN, format=1), "format: "),
        (Plan, altered(PLAN, partitions=None), "partitions: "),
        (Plan, altered(PLAN, fingerprint={"model": {}}), "fingerprint.cells: "),
        (Plan, altered(PLAN, fingerprint={"model": {}, "cells": {}, "more": {}}), "fingerprint.more: "),
        (Plan, altered(PLAN, partitions=ROWS[::-1]), "partition 0 is out of order"),
        (Plan, altered(PLAN, partitions=ROWS[1:]), "partition 0 is out of order"),
        (Plan, rows(1, first=ROWS[0]["last"]), "partition 1 is out of order or of an impossible size"),
        (Plan, rows(1, last=ROWS[1]["first"] - 1), "partition 1 is out of order or of an impossible size"),
        (Plan, rows(2, n_cells=4), "partition 2 is out of order or of an impossible size"),
        (Plan, rows(2, n_cells=0), "partition 2 is out of order or of an impossible size"),
        (Plan, rows(2, n_cells="3"), "partitions.2.n_cells: "),
        (Plan, rows(3, last=None), "partitions.3.last: "),
        (Manifest, altered(MANIFEST, n_empty=11), "10 cells, 11 of them empty"),
        (Manifest, altered(MANIFEST, n_cells=9), "9 cells, 1 of them empty, but 10 rows"),
        (Manifest, altered(MANIFEST, parts={"part-00000.parquet": 0}), "parts.part-00000.parquet: "),
        (Manifest, altered(MANIFEST, digests=["a"]), "Value error, 2 parts, but 1 digests"),
        (Manifest, altered(MANIFEST, dimension=0), "dimension: "),
        (IndexDescription, altered(INDEX, format=5), "format: "),
        (IndexDescription, altered(INDEX, d="512"), "d: Input should be a valid integer"),
        (IndexDescription, altered(INDEX, nprobe=1.5), "nprobe: "),
        (IndexDescription, altered(INDEX, nprobe=0), "nprobe: "),
        (IndexDescription, altered(INDEX, n_cells=True), "n_cells: "),
        (IndexDescription, altered(INDEX, n_cells=31), "31 cells, but 30 in its shards"),
        (IndexDescription, altered(INDEX, recall_at_10=1.5), "recall_at_10: "),
        (IndexDescription, altered(INDEX, recall_at_10=float("nan")), "recall_at_10: "),
        (IndexDescription, altered(INDEX, shards=["a"]), "shards.0: "),
        (IndexDescription, altered(INDEX, shards=[FILES[0] | {"n_cells": "30"}]), "shards.0.n_cells: "),
        (IndexDescription, altered(INDEX, shards=[FILES[0] | {"size": 1}]), "shards.0.size: "),
        (IndexDescription, altered(INDEX, label_columns=[1]), "label_columns.0: "),
        (IndexDescription, altered(INDEX, appended=[1]), "appended.0: "),
        (IndexDescription, altered(INDEX, metric="l2"), "metric: "),
    ],
)
def test_the_first_mistake_is_named(kind, content, problem):
    with pytest.raises(ReferenceSetError) as caught:
        kind.from_json(content, "/data/file.json")
    assert str(caught.value).startswith("/data/file.json cannot be used: ")
    assert problem in caught.value.found
    assert caught.value.expected == f"the {kind.file} of this version of scgpt-ray, whole and unchanged"


@pytest.mark.parametrize("is_exact", [True, False])
def test_the_files_of_a_shard(is_exact):
    files = ShardDescription.of(7, 3, is_exact=is_exact).files
    vectors = [] if is_exact else ["vectors-00007.npy"]
    assert files == ["shard-00007.faiss", "ids-00007.npy", *vectors, "labels-00007.parquet"]
