"""Which cells make a step: every cell once an epoch, the same for every worker."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray.atlas.plan import cut
from scgpt_ray.parts.token_file import read_tokens, write_tokens
from scgpt_ray.schema import BIN, GENE, JOINID
from scgpt_ray.storage import Folder
from scgpt_ray.training import dataset as cells_module
from scgpt_ray.training.dataset import AtlasTokens, Cells, _file_order
from scgpt_ray.training.objective import UNLABELLED

SIZES = [[7, 4, 9], [5, 6]]
"""Cells of the files of two atlases."""


def label(number):
    return ["B", "T", None, " Unknown ", "NK"][number % 5]


def atlas(place, sizes, first, *, labelled=True, in_validation=lambda number: number % 10 == 3):
    """Files of cells that are numbered from `first`; the number is a cell's only gene."""
    folder = Folder.at(place)
    parts = []
    start = first
    for file, size in enumerate(sizes):
        numbers = np.arange(start, start + size)
        tokens = pa.table({
            JOINID: numbers,
            "type": pa.array([label(n) if labelled else None for n in numbers], pa.string()).dictionary_encode(),
            "donor": pa.array([n % 2 for n in numbers], pa.int32()),
            GENE: pa.array([[900, n] for n in numbers], pa.list_(pa.uint16())),
            BIN: pa.array([[0, n % 50] for n in numbers], pa.list_(pa.uint8())),
        })  # fmt: skip
        partition = replace(cut(numbers, 10**6)[0], number=file)
        out = np.array([in_validation(n) for n in numbers])
        named = {"label_column": "type", "domain_column": "donor"}
        parts.append(write_tokens(folder, tokens, partition, out, fingerprint="f", **named))
        start += size
    return AtlasTokens(folder, tuple(parts))


@pytest.fixture(scope="module")
def atlases(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokens")
    return (atlas(place / "a", SIZES[0], 100), atlas(place / "b", SIZES[1], 200))


def cells(atlases, *, validation=False, seed=0, window=10):
    labels, domains = ("B", "NK", "T"), ("0", "1")
    return Cells(atlases, validation, labels, domains, "type", "donor", seed, window)


NUMBERS = [*range(100, 120), *range(200, 211)]
KEPT_OUT = {103, 113, 203}
TO_LEARN = set(NUMBERS) - KEPT_OUT


def epoch(of, number, cells_per_step, rank=0, workers=1):
    """Numbers of the cells that a worker sees in an epoch, step by step."""
    steps = of.n // cells_per_step
    shares = [of.of_step(number * steps + step, cells_per_step, rank, workers) for step in range(steps)]
    return [[(place, int(cell.gene[1])) for place, cell in share] for share in shares]


def seen(steps):
    return [number for step in steps for _, number in step]


def test_every_cell_once_an_epoch(atlases):
    assert cells(atlases).n == len(TO_LEARN) == 28
    for number in range(3):
        found = seen(epoch(cells(atlases), number, 7))
        assert sorted(found) == sorted(TO_LEARN)


def test_what_is_left_over_is_not_used(atlases):
    found = seen(epoch(cells(atlases), 0, 9))
    assert len(set(found)) == len(found) == 27
    dropped = [next(iter(TO_LEARN - set(seen(epoch(cells(atlases), number, 9))))) for number in range(8)]
    assert len(set(dropped)) > 1  # not always the same cell


def test_another_epoch_and_seed_have_another_order(atlases):
    orders = [seen(epoch(cells(atlases, seed=seed), number, 7)) for seed, number in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [order != sorted(order) for order in orders] == [True] * 4


def test_a_step_follows_from_its_number_alone(atlases):
    """A worker that starts again begins anywhere."""
    in_order = cells(atlases)
    steps = [in_order.of_step(step, 7, 0, 1) for step in range(12)]
    for step in (11, 3, 7, 0):
        fresh = cells(atlases).of_step(step, 7, 0, 1)
        assert [(p, c.gene.tolist()) for p, c in fresh] == [(p, c.gene.tolist()) for p, c in steps[step]]


@pytest.mark.parametrize("workers", [2, 3, 10])
def test_workers_share_a_step(atlases, workers):
    whole = epoch(cells(atlases), 1, 7)
    shares = [epoch(cells(atlases), 1, 7, rank, workers) for rank in range(workers)]
    for step, all_of_it in enumerate(whole):
        together = [cell for share in shares for cell in share[step]]
        assert len(together) == 7
        assert sorted(together) == sorted(all_of_it)


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("window", [1, 10, 1000])
def test_windows_of_files(atlases, window, validation):
    """Whatever is shuffled together: one file, some of both atlases, all."""
    numbers = KEPT_OUT if validation else TO_LEARN
    of = cells(atlases, window=window, validation=validation)
    assert of.n == len(numbers)
    assert sorted(seen(epoch(of, 0, 1))) == sorted(numbers)


def test_windows_close_when_they_are_full():
    sizes = (4, 3, 5, 0, 2, 6)
    windows, ends = _file_order(sizes, 0, 0, 6)
    assert sorted(file for files in windows for file in files) == list(range(6))
    found = [sum(sizes[file] for file in files) for files in windows]
    assert ends.tolist() == np.cumsum(found).tolist()
    assert all(size >= 6 for size in found[:-1])
    assert all(size - sizes[files[-1]] < 6 for size, files in zip(found, windows, strict=True))


def test_files_are_read_once_an_epoch_and_only_where_there_is_something(atlases, monkeypatch):
    read = []

    def watched(folder, part, *, validation):
        read.append(part.name)
        return read_tokens(folder, part, validation=validation)

    monkeypatch.setattr(cells_module, "read_tokens", watched)
    of = cells(atlases)
    epoch(of, 0, 7)
    assert len(read) == 5
    read.clear()
    epoch(cells(atlases, validation=True), 0, 1)
    assert len(read) == 3  # two files have no cell kept out


def test_kept_out_cells_are_never_learnt_from(atlases):
    learnt = {number for number_ in range(4) for number in seen(epoch(cells(atlases), number_, 7))}
    evaluated = set(seen(epoch(cells(atlases, validation=True), 0, 3)))
    assert evaluated == KEPT_OUT
    assert not learnt & evaluated


def test_codes(atlases):
    """Of labels and domains as sorted names; null and `unknown` have none; domains may be numbers."""
    of = cells(atlases)
    codes = {"B": 0, "NK": 1, "T": 2}
    for step in range(4):
        for _, cell in of.of_step(step, 7, 0, 1):
            number = int(cell.gene[1])
            assert cell.gene.tolist() == [900, number]
            assert cell.bin.tolist() == [0, number % 50]
            assert cell.label == codes.get(label(number), UNLABELLED)
            assert cell.domain == number % 2
            assert cell.atlas == int(number >= 200)


def test_without_columns_nothing_has_a_code(atlases):
    of = Cells(atlases, False, (), (), None, None, 0)
    assert {(cell.label, cell.domain) for _, cell in of.of_step(0, 28, 0, 1)} == {(UNLABELLED, UNLABELLED)}
    assert of.type_weights.shape == (2, 0)


def test_types_are_those_of_the_cells_to_learn_from(tmp_path):
    """An atlas without labels has none."""
    few = atlas(tmp_path / "few", [2], 100, in_validation=lambda _number: False)  # B, T
    none = atlas(tmp_path / "none", [5], 200, labelled=False)
    out = atlas(tmp_path / "out", [5], 300, in_validation=lambda _number: True)
    found = cells((few, none, out)).type_weights
    assert found.tolist() == [[1, 0, 1], [0] * 3, [0] * 3]
    assert found.dtype == np.float32


def test_rare_types_count_more(atlases):
    """In proportion to n ** -0.5, and 1 on average over the labelled cells of an atlas."""
    labels = [label(number) for number in sorted(TO_LEARN) if number < 200]
    n_K = np.array([labels.count(name) for name in ("B", "NK", "T")])
    found = cells(atlases).type_weights[0]
    assert found @ n_K == pytest.approx(n_K.sum())
    assert (found * n_K**0.5).tolist() == pytest.approx([found[0] * n_K[0] ** 0.5] * 3)


def test_a_type_that_an_atlas_has_only_among_cells_kept_out_is_no_label(tmp_path):
    """Its score is out of the atlas' scope, and its loss would be infinite."""
    whole = atlas(tmp_path / "whole", [10], 100, in_validation=lambda _number: False)
    part = atlas(tmp_path / "part", [10], 200, in_validation=lambda number: label(number) == "NK" or number > 204)
    evaluated = cells((whole, part), validation=True)
    labels = {int(cell.gene[1]): cell.label for _, cell in evaluated.of_step(0, evaluated.n, 0, 1)}
    assert labels == {204: UNLABELLED, 205: 0, 206: 2, 207: UNLABELLED, 208: UNLABELLED, 209: UNLABELLED}
