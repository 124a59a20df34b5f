"""The audit of an index: every kind of damage gives its line."""

import hashlib
import io
import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.index import audit
from scgpt_ray.index.description import CENTRE, TEMPLATE, TEMPLATE_MARKER
from scgpt_ray.index.shard import build_shard
from scgpt_ray.index.template import train
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import PARTS, read_part, read_vectors
from scgpt_ray.records import IndexDescription, ShardDescription
from scgpt_ray.schema import JOINID
from scgpt_ray.storage import Folder

SHARD, LABELS, IDS, VECTORS = "shard-00001.faiss", "labels-00001.parquet", "ids-00001.npy", "vectors-00001.npy"
FACTORIES = ["Flat", "IVF2,SQ8", "PCAR8,IVF2,PQ4x4fsr"]


def audit_index(folder):
    return list(map(str, audit.audit_index(folder)))


def array_bytes(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


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
    centre = array_bytes(np.zeros(8, np.float32))
    folder.write(TEMPLATE, template)
    folder.write(CENTRE, centre)
    content = hashlib.sha256(template + centre).hexdigest()
    folder.write(TEMPLATE_MARKER, json.dumps({"content": content}).encode())
    shards = tuple(
        write_shard(folder, run, number, part, template, factory) for number, part in enumerate(manifest.parts)
    )
    description = IndexDescription(
        request={}, factory=factory, d=8, n_cells=198, nprobe=1, rerank=1,
        recall_at_10=1.0 if factory == "Flat" else 0.4, recall_queries=1,
        shards=shards, label_columns=("kind",), fingerprint=manifest.fingerprint, embeddings=run.uri, checkpoint="demo",
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
@pytest.mark.parametrize("name", [TEMPLATE, CENTRE, TEMPLATE_MARKER, SHARD, IDS, LABELS])
def test_missing_and_torn_files(index, name):
    content = index.read(name)
    index.remove(name)
    assert audit_index(index) == [f"{name} is missing"]
    index.write(name, content[: len(content) // 2])
    if name == CENTRE:
        assert audit_index(index) == [f"{TEMPLATE_MARKER} has the digest of another {TEMPLATE} or {CENTRE}"]
    else:
        (line,) = audit_index(index)
        assert line.startswith(f"{name} cannot be read: ")


@only_flat
def test_a_shard_with_other_cells_than_its_labels(index):
    ids = np.load(index.path / IDS)
    ids[-1] = 12345
    np.save(index.path / IDS, ids)
    assert audit_index(index) == [f"{LABELS} holds other cells than {IDS}"]
    np.save(index.path / IDS, np.sort(ids)[::-1])
    assert f"{IDS} is not in ascending order" in audit_index(index)


@pytest.mark.parametrize("factory", FACTORIES[1:], indirect=True)
def test_vectors_that_are_lost_torn_or_broken(index):
    content = index.read(VECTORS)
    index.remove(VECTORS)
    assert audit_index(index) == [f"{VECTORS} is missing"]
    index.write(VECTORS, content[:-2])
    (line,) = audit_index(index)
    assert line.startswith(f"{VECTORS} cannot be read: ")
    index.write(VECTORS, content)
    vectors = np.load(index.path / VECTORS)
    np.save(index.path / VECTORS, np.roll(vectors, 1, axis=0))
    assert audit_index(index) == [f"{VECTORS} holds other vectors than the embeddings"]
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
    assert audit_index(index) == [f"{LABELS} holds other cells than {IDS}"]


@only_flat
def test_the_order_of_labels_is_that_of_the_rows(index):
    index.write(LABELS, table_bytes(labels_of(index)[::-1]))
    assert audit_index(index) == [f"{LABELS} holds other cells than {IDS}"]


@only_flat
@pytest.mark.parametrize("column", [JOINID, "kind"])
def test_a_lost_column(index, column):
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(index.path / LABELS).drop_columns(column), sink)
    index.write(LABELS, sink.getvalue())
    assert audit_index(index) == [f"{LABELS} has no column {column}"]


@only_flat
def test_labels_that_moved_to_other_cells(index):
    rows = labels_of(index)
    kinds = [row["kind"] for row in rows]
    index.write(
        LABELS, table_bytes([row | {"kind": kind} for row, kind in zip(rows, kinds[1:] + kinds[:1], strict=True)])
    )
    assert audit_index(index) == [f"{LABELS} holds other values of kind than the embeddings"]


@only_flat
def test_other_vectors_in_a_shard(index, run):
    vectors = read_vectors(run.folder(PARTS), list(require_manifest(run).parts)[1])[1]
    index.write(SHARD, faiss.serialize_index(filled(vectors[::-1])).tobytes())
    assert audit_index(index) == [f"{SHARD} holds other vectors than the embeddings"]


def filled(vectors):
    opened = faiss.IndexFlat(8, faiss.METRIC_INNER_PRODUCT)
    opened.add(np.ascontiguousarray(vectors))
    return opened


@only_flat
def test_cells_in_two_shards(index):
    for name, other in ((SHARD, "shard-00000.faiss"), (IDS, "ids-00000.npy"), (LABELS, "labels-00000.parquet")):
        index.write(name, index.read(other))
    assert audit_index(index) == ["index.json has 99 cells in more than one shard, the first is soma_joinid 10"]


@only_flat
def test_cells_that_were_not_embedded_or_not_indexed(index, run):
    ids, labels = np.load(index.path / IDS), labels_of(index)
    ids[-1] = labels[-1][JOINID] = 12345
    np.save(index.path / IDS, ids)
    index.write(LABELS, table_bytes(labels))
    assert audit_index(index) == [
        f"index.json lacks 1 of the cells embedded in {run.uri}",
        f"index.json lists 1 cells that are not embedded in {run.uri}",
    ]


@pytest.mark.parametrize(("factory", "said", "is_missed"), [
    ("IVF2,SQ8", 0.5, False), ("IVF2,SQ8", 1.0, True), ("Flat", 1.0, False),
], indirect=["factory"])  # fmt: skip
def test_recall_is_measured_again(index, factory, said, is_missed):
    """One of two lists finds some of the neighbours of random vectors."""
    describe(index, recall_at_10=said)
    found = audit_index(index)
    assert [line.startswith(f"index.json says recall@10 {said:.4f}; measured now: 0.") for line in found] == (
        [True] if is_missed else []
    )


@only_flat
def test_a_count_that_is_wrong(index):
    shards = json.loads(index.read(IndexDescription.file))["shards"]
    describe(index, shards=[shards[0], shards[1] | {"n_cells": 98}], n_cells=197)
    shard, ids, *_ = audit_index(index)
    assert shard == f"{SHARD} holds 99 cells, the description says 98"
    assert ids.startswith(f"{IDS} cannot be read: ")


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
    (line,) = audit_index(index)
    assert f"cannot be compared with the embeddings: {run.uri} now holds other embeddings ({changed});" in line


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
    assert line.startswith("index.json cannot be compared with the embeddings: ")


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
