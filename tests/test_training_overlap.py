"""Cells that are in several atlases are not trained on and validated on."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.atlas.plan import cut
from scgpt_ray.parts.token_file import read_tokens, write_tokens
from scgpt_ray.schema import BIN, CONTENT, GENE, JOINID, OBS_ID
from scgpt_ray.storage import Folder
from scgpt_ray.training.dataset import AtlasTokens, Cells
from scgpt_ray.training.overlap import without_overlap

TRAIN, VALIDATE = False, True


def atlas(place, *files, ids=True):
    """Files of cells (id, content, type, side); the content is the cell's only gene."""
    folder = Folder.at(place)
    parts = []
    for number, cells in enumerate(files):
        names, contents, types, sides = zip(*cells, strict=True)
        columns = {
            JOINID: np.arange(len(cells)),
            **({OBS_ID: pa.array(names, pa.string())} if ids else {}),
            "type": pa.array(types, pa.string()),
            GENE: pa.array([[900, content] for content in contents], pa.list_(pa.uint16())),
            BIN: pa.array([[0, 1]] * len(cells), pa.list_(pa.uint8())),
            CONTENT: pa.array(contents, pa.uint64()),
        }
        partition = replace(cut(np.arange(len(cells)), 100)[0], number=10 + number)
        named = {"fingerprint": "f", "label_column": "type", "domain_column": None}
        parts.append(write_tokens(folder, pa.table(columns), partition, np.array(sides), **named))
    return AtlasTokens(folder, tuple(parts))


def learnt(atlases):
    """Contents of the cells of an epoch, by atlas."""
    cells = Cells(atlases, False, ("B", "T"), (), "type", None, 0, 10)
    seen = [(cell.atlas, int(cell.gene[1])) for step in range(cells.n) for _, cell in cells.of_step(step, 1, 0, 1)]
    return sorted(seen)


@pytest.fixture
def first(tmp_path):
    return atlas(
        tmp_path / "first",
        [("a", 1, "B", TRAIN), ("b", 2, "T", VALIDATE), ("c", 3, "T", TRAIN)],
        [("d", 4, "B", VALIDATE), ("e", 5, "B", TRAIN), ("f", 6, "T", TRAIN)],
    )


def test_without_overlap_nothing_changes(first):
    (found,) = without_overlap((first,), "type", None)
    assert found == first
    assert found.n_left_out == 0


def test_cells_of_equal_content_or_id_are_left_out_of_training(first, tmp_path):
    second = atlas(
        tmp_path / "second",
        [("x", 4, "T", TRAIN), ("b", 12, "T", TRAIN), ("y", 13, "B", TRAIN), ("z", 14, "B", TRAIN)],
        [("f", 16, "T", VALIDATE), ("a", 17, "T", TRAIN), ("w", 3, "B", VALIDATE)],
    )
    found = without_overlap((first, second), "type", None)
    # 3 and 6 of the first are validated on in the second, by content and by id; so are 4 and `b` of the second.
    assert [one.left_out for one in found] == [{10: (1,), 11: (1,)}, {10: (0, 1)}]
    assert [[part.n_train for part in one.parts] for one in found] == [[1, 1], [2, 1]]
    assert [[part.labels for part in one.parts] for one in found] == [[{"B": 1}, {"B": 1}], [{"B": 2}, {"T": 1}]]
    assert [one.n_left_out for one in found] == [2, 2]
    assert learnt(found) == [(0, 1), (0, 5), (1, 13), (1, 14), (1, 17)]
    assert [[part.n_validation for part in one.parts] for one in found] == [[1, 1], [0, 2]]
    evaluated = Cells(found, True, ("B", "T"), (), "type", None, 0, 10)
    assert sorted(int(cell.gene[1]) for _, cell in evaluated.of_step(0, 4, 0, 1)) == [2, 3, 4, 16]


def test_a_cell_that_is_twice_in_one_atlas(tmp_path):
    (found,) = without_overlap(
        (atlas(tmp_path, [("a", 1, "B", TRAIN), ("b", 1, "B", VALIDATE), ("c", 2, "B", TRAIN)]),), None, None
    )
    assert learnt((found,)) == [(0, 2)]


def test_row_numbers_are_no_ids(tmp_path):
    numbers = atlas(tmp_path / "a", [("0", 1, "B", TRAIN), ("1", 2, "B", VALIDATE)])
    others = atlas(tmp_path / "b", [("0", 3, "B", VALIDATE), ("1", 4, "B", TRAIN), ("", 5, "B", VALIDATE)])
    assert learnt(without_overlap((numbers, others), None, None)) == [(0, 1), (1, 4)]


def test_atlases_without_ids_are_compared_by_content(tmp_path):
    one = atlas(tmp_path / "a", [("a", 1, "B", TRAIN), ("b", 2, "B", VALIDATE)], ids=False)
    other = atlas(tmp_path / "b", [("a", 1, "B", VALIDATE), ("b", 4, "B", TRAIN)])
    assert learnt(without_overlap((one, other), None, None)) == [(1, 4)]


def test_only_what_is_needed_is_read(first):
    (part, _) = first.parts
    assert read_tokens(first.folder, part, validation=True, columns=[CONTENT, "no such"]).to_pydict() == {CONTENT: [2]}


def test_nothing_to_validate_on(tmp_path):
    only = atlas(tmp_path, [("a", 1, "B", TRAIN)])
    assert without_overlap((only,), "type", None) == (only,)
