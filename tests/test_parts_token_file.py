"""Tokens as files: what of a partition is kept, and which files are trusted."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scgpt_ray.atlas.plan import cut
from scgpt_ray.parts.token_file import committed_tokens, read_tokens, tally, write_tokens
from scgpt_ray.schema import BIN, GENE, JOINID, N_GENES
from scgpt_ray.storage import Folder

LABELS = ["T", None, "unknown", "B", " NaN", "T"]
GENES = [[9, 1], [], [9, 2, 3], [9, 4], [9, 5], [9, 6]]
"""The second cell has no tokens."""
KEPT_OUT = np.array([False, True, True, False, False, True])


def table(labels=LABELS):
    return pa.table({
        JOINID: np.arange(len(labels)) + 10,
        "type": pa.array(labels, pa.string()).dictionary_encode(),
        "donor": pa.array([1, 2, 1, 2, 1, 3], pa.int64()),
        N_GENES: pa.array([max(0, len(genes) - 1) for genes in GENES], pa.int32()),
        GENE: pa.array(GENES, pa.list_(pa.uint16())),
        BIN: pa.array(GENES, pa.list_(pa.uint8())),
    })  # fmt: skip


def write(folder, *, number=0, fingerprint="f", validation=KEPT_OUT, tokens=None, **columns):
    partition = replace(cut(np.arange(6) + 10, 10)[0], number=number)
    named = {"label_column": "type", "domain_column": "donor", **columns}
    return write_tokens(folder, tokens or table(), partition, validation, fingerprint=fingerprint, **named)


@pytest.fixture
def folder(tmp_path):
    return Folder.at(tmp_path / "tokens")


def test_what_is_kept(folder):
    part = write(folder, number=3)
    assert part.name == "part-00003.parquet"
    assert (part.n_train, part.n_validation, part.n_tokens) == (3, 2, 11)
    assert part.joinids == cut(np.arange(6) + 10, 10)[0].digest
    to_learn, to_evaluate = (read_tokens(folder, part, validation=out) for out in (False, True))
    assert to_learn[JOINID].to_pylist() == [10, 13, 14]
    assert to_evaluate[JOINID].to_pylist() == [12, 15]
    assert to_learn[GENE].to_pylist() == [[9, 1], [9, 4], [9, 5]]
    assert to_evaluate[BIN].to_pylist() == [[9, 2, 3], [9, 6]]
    whole = pq.read_table(folder.path / part.name)  # as a user would
    assert whole[JOINID].to_pylist() == [10, 13, 14, 12, 15]
    assert whole.schema.field(GENE).type == pa.list_(pa.uint16())


def test_labels_and_domains_are_those_of_the_cells_to_learn_from(folder):
    part = write(folder)
    assert part.labels == {"B": 1, "T": 1}
    assert part.domains == {"1": 2, "2": 1}
    assert write(folder, label_column=None, domain_column=None).labels == {}


@pytest.mark.parametrize("validation", [np.zeros(6, bool), np.ones(6, bool)], ids=["none", "all"])
def test_one_side_may_be_empty(folder, validation):
    part = write(folder, validation=validation)
    assert committed_tokens(folder, "f") == {0: part}
    sizes = [read_tokens(folder, part, validation=out).num_rows for out in (False, True)]
    assert sizes == [part.n_train, part.n_validation] == ([0, 5] if validation.all() else [5, 0])


def test_a_partition_of_empty_cells(folder):
    empty = pa.array([[]] * 6, pa.list_(pa.uint16()))
    tokens = table().set_column(4, GENE, empty).set_column(5, BIN, empty.cast(pa.list_(pa.uint8())))
    part = write(folder, tokens=tokens)
    assert (part.n_train, part.n_validation, part.n_tokens, part.labels) == (0, 0, 0, {})
    assert committed_tokens(folder, "f") == {0: part}


def test_tables_in_several_chunks(folder):
    part = write(folder, tokens=pa.concat_tables([table().slice(0, 2), table().slice(2, 1), table().slice(3)]))
    assert read_tokens(folder, part, validation=False)[JOINID].to_pylist() == [10, 13, 14]


def test_files_that_are_there(folder):
    parts = [write(folder, number=number) for number in (0, 2)]
    write(folder, number=1, fingerprint="of another run")
    assert committed_tokens(folder, "f") == {0: parts[0], 2: parts[1]}
    assert committed_tokens(folder.folder("not there"), "f") == {}


def test_torn_and_foreign_files_are_not_trusted(folder):
    whole = write(folder, number=0)
    content = (folder.path / whole.name).read_bytes()
    (folder.path / "part-00001.parquet").write_bytes(content[: len(content) // 2])
    (folder.path / "part-00002.parquet").write_bytes(content)  # says that it is part 0
    (folder.path / ".part-00003.parquet.tmp").write_bytes(content)
    pq.write_table(table(), folder.path / "part-00004.parquet")
    stamp = {**pq.read_schema(folder.path / whole.name).metadata}
    said = json.loads(stamp[b"scgpt_ray.tokens"]) | {"partition": 5}
    fewer = pq.read_table(folder.path / whole.name).slice(1)
    pq.write_table(
        fewer.replace_schema_metadata({b"scgpt_ray.tokens": json.dumps(said)}), folder.path / "part-00005.parquet"
    )
    assert committed_tokens(folder, "f") == {0: whole}


def test_a_tally_leaves_out_what_is_not_known():
    column = pa.chunked_array([pa.array(["B", None, "", "Unknown", " none ", "nan", "T cell", "B"])])
    assert tally(pa.table({"c": column}), "c") == {"B": 2, "T cell": 1}
