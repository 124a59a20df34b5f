"""Parts: written whole, described by their footer, read back as they were."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scgpt_ray.atlas.plan import cut
from scgpt_ray.errors import CompletenessError, ReferenceSetError
from scgpt_ray.parts.parts import (
    GENE_BINS,
    Part,
    committed,
    iterate_parts,
    part_name,
    read_footer,
    read_part,
    read_vectors,
    write_part,
)
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, matrix_array
from scgpt_ray.storage import Folder

VECTORS = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)


ACTOR = {"device": "cpu", "cells_overflowed": 3}


def embeddings(absent=(False, False, False), **columns):
    return pa.table({
        JOINID: pa.array([4, 7, 9]),
        **columns,
        N_GENES: pa.array([0 if none else 5 for none in absent], pa.int32()),
        EMBEDDING: matrix_array(VECTORS, np.array(absent)),
    })  # fmt: skip


def written(folder, table, number=0):
    partition = cut(table[JOINID].to_numpy(), 100)[0]
    object.__setattr__(partition, "number", number)
    part, n_bytes = write_part(folder, table, partition, fingerprint="f", n_tokens=15, n_cut=2, actor=ACTOR)
    assert n_bytes == len(folder.read(part.name))
    return part


@pytest.mark.parametrize(
    ("absent", "ids"),
    [
        ((False, False, False), [4, 7, 9]),
        ((True, False, False), [7, 9]),
        ((False, True, False), [4, 9]),
        ((False, False, True), [4, 7]),
        ((True, True, True), []),
    ],
)
def test_round_trip_with_absent_embeddings(tmp_path, absent, ids):
    folder, table = Folder.at(tmp_path), embeddings(absent)
    part = written(folder, table)
    assert (part.n_cells, part.n_empty, part.dimension, part.name) == (3, sum(absent), 2, "part-00000.parquet")
    back = read_part(folder, part.name)
    back.validate(full=True)
    assert back.schema.equals(table.schema)
    assert back.to_pylist() == table.to_pylist()
    found, vectors = read_vectors(folder, part.name)
    assert found.tolist() == ids
    np.testing.assert_array_equal(vectors, VECTORS[~np.array(absent)])
    assert vectors.shape == (len(ids), 2)


def test_a_sliced_and_chunked_table_is_written_as_it_is(tmp_path):
    folder = Folder.at(tmp_path)
    table = pa.concat_tables([embeddings((True, False, False)).slice(0, 1), embeddings().slice(1)])
    written(folder, table)
    assert read_part(folder, part_name(0)).to_pylist() == table.to_pylist()


def test_text_is_dictionary_encoded_and_numbers_are_not(tmp_path):
    folder = Folder.at(tmp_path)
    table = embeddings(
        obs_id=pa.array(["a", "b", "c"]),
        kind=pa.array(["B", None, "B"]),
        note=pa.array(["x", "y", "x"], pa.large_string()),
        age=pa.array([1, 2, None], pa.int16()),
        nothing=pa.array([None, None, None], pa.string()),
    )
    written(folder, table)
    back = read_part(folder, part_name(0))
    for name in ("obs_id", "kind", "note", "nothing"):
        assert back[name].type == pa.dictionary(pa.int32(), pa.string())
    assert back["age"].type == pa.int16()
    assert back.to_pylist() == table.to_pylist()


def test_some_columns_of_some_parts(tmp_path):
    folder = Folder.at(tmp_path)
    for number in (0, 1):
        written(folder, embeddings(), number)
    tables = list(iterate_parts(folder, [part_name(1), part_name(0)], [JOINID]))
    assert [table.column_names for table in tables] == [[JOINID], [JOINID]]


@pytest.mark.parametrize("table", [embeddings().slice(0, 2), embeddings().take([0, 1, 1])])
def test_a_table_of_other_cells_is_refused(tmp_path, table):
    partition = cut(np.array([4, 7, 9]), 100)[0]
    with pytest.raises(CompletenessError, match=r"partition 0 has \d cells .*; planned were 3 \("):
        write_part(Folder.at(tmp_path), table, partition, fingerprint="f", n_tokens=0)
    assert list(tmp_path.iterdir()) == []


def test_a_footer_says_what_the_part_is(tmp_path):
    folder = Folder.at(tmp_path)
    part = written(folder, embeddings((True, False, False)), 3)
    assert read_footer(folder, part.name) == part
    counted = {"n_cells": 3, "n_empty": 1, "n_tokens": 15, "n_cut": 2, "dimension": 2}
    assert part == Part("f", 3, part.joinids, **counted, n_genes=part.n_genes, data=part.data, actor={"device": "cpu"})
    assert {bound: cells for bound, cells in zip(GENE_BINS, part.n_genes, strict=True) if cells} == {0: 1, 5: 2}
    assert committed(folder) == {3: part}


def test_the_digest_is_that_of_the_bytes_before_the_footer(tmp_path):
    part = written(Folder.at(tmp_path), embeddings())
    content = (tmp_path / part.name).read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    assert b"scgpt_ray.part" not in content[: -8 - footer]
    assert part.data == hashlib.sha256(content[: len(content) - 8 - footer]).hexdigest()


def test_a_damaged_page_of_any_column_is_an_error_that_names_the_part(tmp_path):
    folder = Folder.at(tmp_path)
    part = written(folder, embeddings(kind=pa.array(["B", None, "T"])))
    content = (tmp_path / part.name).read_bytes()
    group = pq.read_metadata(tmp_path / part.name).row_group(0)
    for column in map(group.column, range(group.num_columns)):
        damaged = bytearray(content)
        start = column.dictionary_page_offset or column.data_page_offset
        damaged[start + column.total_compressed_size - 1] ^= 1
        (tmp_path / part.name).write_bytes(damaged)
        name = column.path_in_schema.split(".")[0]
        with pytest.raises(ReferenceSetError, match=rf"{part.name} cannot be read: .*(?i:crc)"):
            read_part(folder, part.name, [name])


def test_equal_tables_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        written(Folder.at(tmp_path / name), embeddings(kind=pa.array(["B", None, "T"])))
    assert (tmp_path / "a" / part_name(0)).read_bytes() == (tmp_path / "b" / part_name(0)).read_bytes()


def foreign(path):
    pq.write_table(embeddings().drop_columns(EMBEDDING), path)


def renamed(path):
    part = written(Folder.at(path.parent / "other"), embeddings(), 5)
    (path.parent / "other" / part.name).rename(path)


def other_rows(path):
    """A footer that was copied onto another table."""
    part = written(Folder.at(path.parent / "other"), embeddings())
    footer = pq.read_metadata(path.parent / "other" / part.name).metadata[b"scgpt_ray.part"]
    assert json.loads(footer)["n_cells"] == 3
    pq.write_table(pa.table({JOINID: [4]}).replace_schema_metadata({b"scgpt_ray.part": footer}), path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PAR1 and nothing"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        foreign,
        renamed,
        other_rows,
    ],
)
def test_what_is_torn_or_foreign_is_not_committed(tmp_path, damage):
    folder = Folder.at(tmp_path)
    for number in (0, 1):
        written(folder, embeddings(), number)
    damage(tmp_path / part_name(0))
    assert read_footer(folder, part_name(0)) is None
    assert list(committed(folder)) == [1]


def test_an_unfinished_write_is_not_seen(tmp_path):
    (tmp_path / ".part-00000.parquet.0a1b2c3d.tmp").write_bytes(b"PAR1")
    assert committed(Folder.at(tmp_path)) == {}
    assert committed(Folder.at(tmp_path / "absent")) == {}
