"""The audit of embeddings: every kind of damage gives its line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scgpt_ray.errors import OutputError, ReferenceSetError
from scgpt_ray.parts.audit import audit_embeddings
from scgpt_ray.parts.parts import PARTS
from scgpt_ray.records import Manifest, Plan
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES

PART = "part-00001.parquet"
OTHER_DATA = f"{PART} holds other data than were committed"


@pytest.fixture
def run(make_embeddings, tmp_path):
    return make_embeddings(tmp_path / "run", empty=(3, 9))


def rewrite(run, change):
    """Alter the table of a part behind its footer's back."""
    path = run.path / PARTS / PART
    table = pq.read_table(path)
    stamp = pq.read_metadata(path).metadata[b"scgpt_ray.part"]
    pq.write_table(change(table).replace_schema_metadata({b"scgpt_ray.part": stamp}), path)


def column(name, change):
    def changed(table):
        values = table[name].to_pylist()
        change(values)
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values, table[name].type))

    return changed


def put(row, value):
    return lambda values: values.__setitem__(row, value)


def test_all_is_well(run):
    assert audit_embeddings(run) == []


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            column(EMBEDDING, put(0, [0.5] * 8)),
            [f"{PART}: 1 embeddings are not unit vectors, the first of soma_joinid 16"],
        ),
        (
            column(EMBEDDING, put(1, [np.nan] * 8)),
            [f"{PART}: 1 embeddings are not unit vectors, the first of soma_joinid 17"],
        ),
        (
            column(EMBEDDING, put(4, None)),
            [
                f"{PART}: the cells without an embedding are not those without genes",
                "parts hold 20 cells, 3 of them empty; the manifest says 20 and 2",
            ],
        ),
        (column(N_GENES, put(0, 0)), [f"{PART}: the cells without an embedding are not those without genes"]),
        (
            column(JOINID, put(1, 16)),
            [f"{PART}: holds other cells than planned", f"{PART}: soma_joinid is not strictly ascending"],
        ),
        (lambda table: table.drop_columns("kind"), [f"{PART}: columns kind are missing"]),
    ],
)
def test_altered_parts(run, change, lines):
    rewrite(run, change)
    assert audit_embeddings(run) == [OTHER_DATA, *lines]


@pytest.mark.parametrize(("length", "is_wrong"), [(1 + 1e-6, False), (1 + 1e-4, True), (1 - 1e-4, True)])
def test_vectors_are_of_unit_length_but_for_rounding(run, length, is_wrong):
    rewrite(run, column(EMBEDDING, lambda vectors: put(2, [length * x for x in vectors[2]])(vectors)))
    wrong = [f"{PART}: 1 embeddings are not unit vectors, the first of soma_joinid 18"]
    assert audit_embeddings(run) == [OTHER_DATA, *(wrong if is_wrong else [])]


def test_fewer_rows_than_planned(run):
    rewrite(run, lambda table: table.slice(1))
    assert audit_embeddings(run) == [
        "partition 1 (7 cells) has no part",
        OTHER_DATA,
        f"{PART}: holds other cells than planned",
        "parts hold 19 cells, 2 of them empty; the manifest says 20 and 2",
    ]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:500])])
def test_a_removed_or_torn_part(run, damage):
    damage(run.path / PARTS / PART)
    first, second, third = audit_embeddings(run)
    assert first == "partition 1 (7 cells) has no part"
    assert second.startswith(f"{PART} cannot be read: ")
    assert third == "parts hold 13 cells, 1 of them empty; the manifest says 20 and 2"


def test_vectors_that_moved_to_other_cells(run):
    def exchanged(vectors):
        vectors[4], vectors[5] = vectors[5], vectors[4]

    rewrite(run, column(EMBEDDING, exchanged))
    assert audit_embeddings(run) == [OTHER_DATA]


def test_flipped_bits_inside_a_vector(run):
    """The footer is whole and the file still opens."""
    path = run.path / PARTS / PART
    content = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        start = file.metadata.row_group(0).column(5).data_page_offset
        assert file.metadata.row_group(0).column(5).path_in_schema == "embedding.list.element"
        end = start + file.metadata.row_group(0).column(5).total_compressed_size
    content[end - 1] ^= 0x40
    path.write_bytes(content)
    damaged, _ = audit_embeddings(run)
    assert damaged.startswith(f"{PART} cannot be read: ")
    assert "CRC checksum verification failed" in damaged


def test_a_second_fingerprint(run, make_embeddings, tmp_path):
    other = make_embeddings(tmp_path / "other", weights="v")
    (run.path / PARTS / PART).write_bytes((other.path / PARTS / PART).read_bytes())
    with pytest.raises(OutputError, match=rf"{PART} has fingerprint .*; expected .* as plan.json says"):
        audit_embeddings(run)


def test_records_that_contradict_each_other(run, make_embeddings, tmp_path):
    manifest = json.loads(run.read(Manifest.file))
    run.write(
        Manifest.file,
        json.dumps(
            manifest | {"parts": {"part-00000.parquet": 21}, "digests": manifest["digests"][:1], "n_cells": 21}
        ).encode(),
    )
    assert audit_embeddings(run) == [
        "manifest.json lists other parts than were planned",
        "parts hold 20 cells, 2 of them empty; the manifest says 21 and 2",
    ]
    run.write(Manifest.file, json.dumps(manifest).encode())
    run.write(Plan.file, make_embeddings(tmp_path / "other", weights="v").read(Plan.file))
    assert audit_embeddings(run) == ["plan.json and manifest.json have different fingerprints"]
    run.remove(Plan.file)
    assert audit_embeddings(run) == ["plan.json is missing"]


def test_an_unfinished_folder_is_refused(run):
    run.remove(Manifest.file)
    with pytest.raises(ReferenceSetError, match=r"has no manifest.json"):
        audit_embeddings(run)
