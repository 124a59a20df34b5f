"""Token files of a run: no cell, and no donor, is both trained on and validated on."""

import numpy as np
import pytest

from scgpt_ray.config import PretrainSettings
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.parts.token_file import read_tokens
from scgpt_ray.pipelines.pretrain_request import check_training
from scgpt_ray.pipelines.token_cache import cache_tokens
from scgpt_ray.schema import OBS_ID
from scgpt_ray.training.dataset import Cells


@pytest.fixture(scope="module")
def places(blood, tmp_path_factory):
    """Three atlases: cells; 130 of them with half of the genes; 130 others under other names, log-normalised."""
    folder = tmp_path_factory.mktemp("atlases")
    cells = blood.copy()
    cells.obs["donor"] = [f"d{number % 6}" for number in range(cells.n_obs)]
    fewer = cells[:130, ::2].copy()
    fewer.obs["donor"] = [f"e{number % 3}" for number in range(fewer.n_obs)]
    renamed = cells[130:, ::-1].copy()
    renamed.obs_names = [f"other-{name}" for name in renamed.obs_names]
    renamed.obs["donor"] = [f"f{number % 3}" for number in range(renamed.n_obs)]
    renamed.X = renamed.X.log1p()
    for name, adata in (("cells", cells), ("fewer", fewer), ("renamed", renamed)):
        adata.write_h5ad(folder / f"{name}.h5ad")
    return folder


@pytest.fixture
def cached(places, tmp_path):
    """Makes token files: cached(option=value, ...) -> (atlases, ids of an atlas' cells of a side, donors of a side)."""

    def make(*names, **options):
        asked = {
            "atlas": [str(places / f"{name}.h5ad") for name in names], "output": str(tmp_path / "out"),
            "obs_columns": ["donor"], "cells_per_partition": 70, **options,
        }  # fmt: skip
        job = check_training(PretrainSettings.of(asked))
        return cache_tokens(job, SerialExecutor())

    return make


def side(atlas, column, *, validation):
    """Values of the cells of a side that a run uses."""
    found = []
    for part in atlas.parts:
        values = read_tokens(atlas.folder, part, validation=validation)[column].to_pylist()
        left_out = () if validation else atlas.left_out.get(part.partition, ())
        found += [value for row, value in enumerate(values) if row not in left_out]
        n_cells = part.n_validation if validation else part.n_train
        assert len(values) - len(left_out) == n_cells
    return found


def original(name):
    return name.removeprefix("other-")


@pytest.mark.parametrize(
    "options",
    [
        {"validation_share": 0.3},
        {"validation_share": 0.3, "validate_by": "donor"},
        {"validation_filter": "donor in ['d1', 'e2', 'f0']"},
    ],
    ids=["cells", "donors", "filter"],
)
def test_a_cell_of_two_atlases_is_on_one_side(cached, options):
    atlases = cached("cells", "fewer", "renamed", **options)
    learnt, evaluated = (
        {original(name) for atlas in atlases for name in side(atlas, OBS_ID, validation=validation)}
        for validation in (False, True)
    )
    assert not learnt & evaluated
    assert len(learnt) > 50
    assert len(evaluated) > 50
    donors = [
        {name for atlas in atlases for name in side(atlas, "donor", validation=validation)}
        for validation in (False, True)
    ]
    if "validation_share" not in options or "validate_by" in options:
        assert not donors[0] & donors[1]
    assert sum(atlas.n_left_out for atlas in atlases) > 0


def test_a_random_share_puts_equal_cells_on_the_same_side(cached):
    """So that few are left out: other values and another order of the genes are the same tokens."""
    cells, renamed = cached("cells", "renamed", validation_share=0.3)
    assert cells.n_left_out + renamed.n_left_out == 0
    found = {original(name) for name in side(renamed, OBS_ID, validation=True)}
    assert 20 < len(found) < 60
    assert found == {name for name in side(cells, OBS_ID, validation=True) if int(name[-3:]) >= 130}


def test_cells_without_a_donor_are_not_used(places, tmp_path, blood, cached):
    cells = blood.copy()
    cells.obs["donor"] = np.array(["d1", "d2", None, "unknown"], object)[np.arange(cells.n_obs) % 4]
    cells.write_h5ad(places / "some.h5ad")
    (atlas,) = cached("some", validate_by="donor", validation_share=0.5)
    sides = [side(atlas, "donor", validation=validation) for validation in (False, True)]
    assert sorted(map(set, sides), key=min) == [{"d1"}, {"d2"}]
    assert 120 < sum(map(len, sides)) <= 130


def test_the_run_uses_what_is_left(cached):
    atlases = cached("cells", "fewer", validate_by="donor", validation_share=0.3)
    of = Cells(atlases, False, (), (), None, None, 0)
    assert of.n == sum(len(side(atlas, OBS_ID, validation=False)) for atlas in atlases)
    cells = [cell for _, cell in of.of_step(0, of.n, 0, 1)]
    assert len(cells) == of.n
