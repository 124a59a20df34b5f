"""The audit of an index: every kind of damage gives its line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index.audit import audit_index
from scgpt_ray.index.description import TEMPLATE
from scgpt_ray.index.shard import build_shard
from scgpt_ray.index.template import train
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS, read_part, read_vectors
from scgpt_ray.records import IndexDescription, ShardDescription
from scgpt_ray.schema import JOINID
from scgpt_ray.storage import Folder

SHARD, LABELS, IDS, VECTORS = "shard-00001.faiss", "labels-00001.parquet", "ids-00001.npy", "vectors-00001.npy"
FACTORIES = ["Flat", "IVF2,SQ8", "PCAR8,IVF2,PQ4x4fsr"]


def vectors_of_run(run):
    blocks = [read_vectors(run.folder(PARTS), name) for name in require_manifest(run).parts]
    return np.concatenate([vectors for _, vectors in blocks])


def write_shard(folder, run, number, part, template, factory):
    ids, vectors = read_vectors(run.folder(PARTS), part)
    shard = ShardDescription.of(number, len(ids), is_exact=factory == "Flat")
    build_shard(template, [(ids, vectors)], folder, shard, np.zeros(8, np.float32))
    rows = [
        row for row in read_part(run.folder(PARTS), part, [JOINID, "kind", "n_genes"]).to_pylist() if row.pop("n_genes")
    ]
    folder.write(shard.labels, table_bytes(rows))
    return shard


def table_bytes(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema({JOINID: pa.int64(), "kind": pa.string()})), sink)
    return sink.getvalue()


@pytest.fixture
def run(make_embeddings, tmp_path):
    return make_embeddings(tmp_path / "run", n_cells=200, cells_per_part=100, empty=(3, 150))


@pytest.fixture(params=FACTORIES)
def factory(request):
    return request.param


@pytest.fixture
def index(run, tmp_path, factory):
    """Two shards of a part each; shard 1 holds joinids 110 to 209 but for 160."""
    folder, manifest = Folder.at(tmp_path / "index"), require_manifest(run)
    template = train(vectors_of_run(run), factory, seed=0)
    folder.write(TEMPLATE, template)
    shards = tuple(
        write_shard(folder, run, number, part, template, factory) for number, part in enumerate(manifest.parts)
    )
    description = IndexDescription(
        request={}, factory=factory, d=8, n_cells=198, nprobe=1, rerank=1, recall_at_10=1.0, recall_queries=1,
        shards=shards, label_columns=("kind",), fingerprint=manifest.fingerprint, embeddings=run.uri,
    )  # fmt: skip
    description.write(folder)
    return folder


def describe(index, **changes):
    index.write(IndexDescription.file, json.dumps(json.loads(index.read(IndexDescription.file)) | changes).encode())


def labels_of(index):
    return pq.read_table(index.path / LABELS).to_pylist()


def test_all_is_well(index):
    assert audit_index(index) == []


only_flat = pytest.mark.parametrize("factory", ["Flat"], indirect=True)


@only_flat
@pytest.mark.parametrize(
    ("name", "more"),
    [
        (TEMPLATE, None),
        (SHARD, None),
        (IDS, "99 cells are embedded in {run}, but not indexed"),
        (LABELS, None),
    ],
)
def test_missing_and_torn_files(index, run, name, more):
    others = [more.format(run=run.uri)] if more else []
    content = index.read(name)
    index.remove(name)
    assert audit_index(index) == [f"{name} is missing", *others]
    index.write(name, content[: len(content) // 2])
    first, *rest = audit_index(index)
    assert first.startswith(name)
    assert "cannot be read: " in first
    assert rest == others


@only_flat
def test_a_shard_with_other_cells_than_its_labels(index):
    ids = np.load(index.path / IDS)
    ids[-1] = 12345
    np.save(index.path / IDS, ids)
    place = json.loads(index.read(IndexDescription.file))["embeddings"]
    assert audit_index(index) == [
        f"{IDS} and {LABELS} hold different cells",
        f"1 cell is embedded in {place}, but not indexed",
        f"1 cell is indexed, but not embedded in {place}",
    ]
    np.save(index.path / IDS, np.sort(ids)[::-1])
    assert f"{IDS} is not in ascending order" in audit_index(index)


@pytest.mark.parametrize("factory", FACTORIES[1:], indirect=True)
def test_vectors_that_are_lost_torn_or_broken(index):
    content = index.read(VECTORS)
    index.remove(VECTORS)
    assert audit_index(index) == [f"{VECTORS} is missing"]
    index.write(VECTORS, content[:-2])
    (line,) = audit_index(index)
    assert line.startswith(VECTORS)
    vectors = np.load(index.path / "vectors-00000.npy")
    np.save(index.path / VECTORS, np.full_like(vectors, np.nan))
    assert audit_index(index) == [f"{VECTORS} holds values that are not finite"]


@only_flat
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        lambda rows: [*rows, {JOINID: 12345, "kind": "B"}],
        lambda rows: [rows[1], *rows[1:]],
    ],
)
def test_labels_of_other_cells_than_their_shard(index, change):
    index.write(LABELS, table_bytes(change(labels_of(index))))
    assert audit_index(index) == [f"{IDS} and {LABELS} hold different cells"]


@only_flat
def test_the_order_of_labels_is_that_of_the_rows(index):
    index.write(LABELS, table_bytes(labels_of(index)[::-1]))
    assert audit_index(index) == [f"{IDS} and {LABELS} hold different cells"]


@only_flat
@pytest.mark.parametrize("column", [JOINID, "kind"])
def test_a_lost_column(index, column):
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(index.path / LABELS).drop_columns(column), sink)
    index.write(LABELS, sink.getvalue())
    assert audit_index(index) == [f"{LABELS} has no column {column}"]


@only_flat
def test_cells_in_two_shards(index, run):
    for name, other in ((SHARD, "shard-00000.faiss"), (IDS, "ids-00000.npy"), (LABELS, "labels-00000.parquet")):
        index.write(name, index.read(other))
    assert audit_index(index) == [
        "99 cells are indexed more than once, the first is soma_joinid 10",
        f"99 cells are embedded in {run.uri}, but not indexed",
    ]


@only_flat
def test_a_count_that_is_wrong(index):
    shards = json.loads(index.read(IndexDescription.file))["shards"]
    describe(index, shards=[shards[0], shards[1] | {"n_cells": 98}], n_cells=197)
    shard, ids, *_ = audit_index(index)
    assert shard == f"{SHARD} holds 99 cells, the description says 98"
    assert ids.startswith(IDS)


@only_flat
def test_another_width(index):
    describe(index, d=9)
    assert audit_index(index) == [
        f"{TEMPLATE} is of width 8, the description says 9",
        "shard-00000.faiss is of width 8, the description says 9",
        f"{SHARD} is of width 8, the description says 9",
    ]


@only_flat
def test_a_template_that_is_none(index):
    index.write(TEMPLATE, index.read(SHARD))
    assert audit_index(index) == [f"{TEMPLATE} is not a trained, empty index"]


@only_flat
def test_embeddings_made_anew(index, run, make_embeddings):
    make_embeddings(run.path, n_cells=200, cells_per_part=100, empty=(3, 150), weights="v")
    changed = "model.weights: 'v' against 'w'"
    assert audit_index(index) == [f"{run.uri} now holds other embeddings than were indexed ({changed})"]


@only_flat
def test_embeddings_that_are_gone_or_unfinished_say_nothing(index, run):
    run.remove("manifest.json")
    assert audit_index(index) == []
    run.path.rename(run.path.with_name("elsewhere"))
    assert audit_index(index) == []


@only_flat
@pytest.mark.parametrize("name", ["manifest.json", "parts/part-00001.parquet"])
def test_embeddings_that_are_damaged(index, run, name):
    run.write(name, b"{}")
    (line,) = audit_index(index)
    assert line.startswith("the embeddings cannot be compared: ")


@only_flat
def test_an_unfinished_or_foreign_folder_is_refused(index, run):
    with pytest.raises(ReferenceSetError, match=r"has no index.json; .*; give its path to --index"):
        audit_index(run)
    describe(index, format=1)
    with pytest.raises(ReferenceSetError, match=r"index.json cannot be used: format: "):
        audit_index(index)
    index.remove(IndexDescription.file)
    with pytest.raises(ReferenceSetError, match=r"has no index.json; .*; run the same index command again"):
        audit_index(index)
