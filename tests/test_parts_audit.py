"""The audit of embeddings: every kind of damage gives its line."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.parts.audit import Problem, audit_embeddings
from scgpt_ray.parts.manifest import GENES
from scgpt_ray.parts.parts import PARTS
from scgpt_ray.records import Manifest, Plan
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES

PART = "part-00001.parquet"
OTHER_DATA = "holds other data than were committed"


def lines(run):
    """What is wrong with the one damaged part."""
    problems = audit_embeddings(run)
    assert {problem.file for problem in problems} <= {f"{PARTS}/{PART}"}
    assert all(problem.mends for problem in problems)
    return [problem.found for problem in problems]


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
    ("change", "expected"),
    [
        (
            column(EMBEDDING, put(0, [0.5] * 8)),
            ["has 1 embeddings that are not unit vectors, the first of soma_joinid 16"],
        ),
        (
            column(EMBEDDING, put(1, [np.nan] * 8)),
            ["has 1 embeddings that are not unit vectors, the first of soma_joinid 17"],
        ),
        (
            column(EMBEDDING, put(4, None)),
            [
                "holds 7 cells, 2 of them empty; its footer says otherwise",
                "has other cells without an embedding than those without genes",
            ],
        ),
        (column(EMBEDDING, put(1, [1.0])), ["has an embedding that is not 8 float32"]),
        (column(N_GENES, put(0, 0)), ["has other cells without an embedding than those without genes"]),
        (column(JOINID, put(1, 16)), ["holds other cells than planned", "has joinids that do not ascend"]),
        (lambda table: table.drop_columns("kind"), ["lacks columns kind"]),
        (
            lambda table: table.slice(1),
            ["holds other cells than planned", "holds 6 cells, 1 of them empty; its footer says otherwise"],
        ),
        (column(EMBEDDING, lambda vectors: vectors.insert(4, vectors.pop(5))), []),
    ],
)
def test_altered_parts(run, change, expected):
    rewrite(run, change)
    assert lines(run) == [OTHER_DATA, *expected]


@pytest.mark.parametrize(("length", "is_wrong"), [(1 + 1e-6, False), (1 + 1e-4, True), (1 - 1e-4, True)])
def test_vectors_are_of_unit_length_but_for_rounding(run, length, is_wrong):
    rewrite(run, column(EMBEDDING, lambda vectors: put(2, [length * x for x in vectors[2]])(vectors)))
    wrong = ["has 1 embeddings that are not unit vectors, the first of soma_joinid 18"]
    assert lines(run) == [OTHER_DATA, *(wrong if is_wrong else [])]


def test_a_removed_part(run):
    run.remove(f"{PARTS}/{PART}")
    assert lines(run) == ["is missing, with 7 cells"]


@pytest.mark.parametrize("content", [None, b"", b"text" * 99])
def test_a_torn_part(run, content):
    run.write(f"{PARTS}/{PART}", run.read(f"{PARTS}/{PART}")[:500] if content is None else content)
    (line,) = lines(run)
    assert line.startswith("cannot be read: ")


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
    (line,) = lines(run)
    assert line.startswith("cannot be read: ")
    assert "CRC checksum verification failed" in line


def test_a_part_of_another_run(run, make_embeddings, tmp_path):
    other = make_embeddings(tmp_path / "other", weights="v")
    run.write(f"{PARTS}/{PART}", other.read(f"{PARTS}/{PART}"))
    fingerprint, digest = lines(run)
    assert fingerprint.startswith("has fingerprint ")
    assert digest == "is not the part that manifest.json lists"


def test_a_part_that_was_never_planned(run):
    run.write(f"{PARTS}/part-00099.parquet", run.read(f"{PARTS}/{PART}"))
    assert audit_embeddings(run) == [Problem(f"{PARTS}/part-00099.parquet", "was never planned")]


def test_records_that_contradict_each_other(run, make_embeddings, tmp_path):
    manifest = json.loads(run.read(Manifest.file))

    def found(**changes):
        run.write(Manifest.file, json.dumps(manifest | changes).encode())
        return list(map(str, audit_embeddings(run)))

    assert found(parts={"part-00000.parquet": 21}, digests=manifest["digests"][:1], n_cells=21) == [
        "manifest.json lists other parts than were planned",
        "manifest.json says n_cells 21, the parts 20",
    ]
    assert found(n_tokens=1) == ["manifest.json says n_tokens 1, the parts 100"]
    assert found(n_cells=1) == [
        "manifest.json cannot be used: Value error, 1 cells, 2 of them empty, but 20 rows in its parts"
    ]
    assert found() == []
    run.write(Plan.file, make_embeddings(tmp_path / "other", weights="v").read(Plan.file))
    assert "manifest.json has another fingerprint than plan.json" in found()


def test_a_plan_cannot_be_made_again(run):
    run.write(Plan.file, b"{}")
    (problem,) = audit_embeddings(run)
    assert (problem.file, problem.mends) == (Plan.file, False)
    assert problem.found.startswith("cannot be used: ")
    run.remove(Plan.file)
    assert audit_embeddings(run) == [Problem(Plan.file, "is missing", mends=False)]


@pytest.mark.parametrize(
    ("tokens", "line"),
    [([4, None, 0], None), ([4, None, 1], "holds other tokens than"), (None, "is missing"), ([], "holds other tokens")],
)
def test_the_gene_table_is_that_of_the_fingerprint(run, tokens, line):
    digest = hashlib.sha256(np.array([4, -1, -1, 0], "<i4").tobytes()).hexdigest()
    plan = json.loads(run.read(Plan.file))
    plan["fingerprint"]["cells"]["genes"] = digest
    run.write(Plan.file, json.dumps(plan).encode())
    if tokens is not None:
        table = pa.table(
            {JOINID: pa.array([0, 1, 3][: len(tokens)], pa.int64()), "token": pa.array(tokens, pa.int32())}
        )
        pq.write_table(table, run.path / GENES)
    found = [problem.found for problem in audit_embeddings(run) if problem.file == GENES]
    assert [text.startswith(line) for text in found] == ([] if line is None else [True])


def test_an_unfinished_folder_is_refused(run):
    run.remove(Manifest.file)
    with pytest.raises(ReferenceSetError, match=r"has no manifest.json"):
        audit_embeddings(run)
