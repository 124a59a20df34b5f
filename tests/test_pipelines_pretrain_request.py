"""A request to train: what is refused before a cluster is asked for, and what makes two requests one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scgpt_ray.config import PretrainSettings
from scgpt_ray.errors import AtlasError, CheckpointError, ConfigError, GeneCoverageError, InputError, OutputError
from scgpt_ray.network.checkpoint import random_checkpoint, read_checkpoint
from scgpt_ray.parts.token_file import TokenPart
from scgpt_ray.pipelines.pretrain import training_of
from scgpt_ray.pipelines.pretrain_request import METRICS, check_training
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.vocabulary import SPECIALS
from scgpt_ray.training.dataset import AtlasTokens
from scgpt_ray.training.split import choose_groups

SIZE = {"embsize": 16, "nheads": 2, "d_hid": 16, "nlayers": 1}


@pytest.fixture
def ask(blood_file, tmp_path):
    """Checks a request for the synthetic cells: ask(option=value, ...) -> TrainingJob; None leaves an option away."""

    def check(**options):
        plain = {"atlas": [str(blood_file)], "output": str(tmp_path / "out"), **SIZE}
        if options.get("checkpoint"):
            plain = {name: value for name, value in plain.items() if name not in SIZE}
        given = {**plain, **options}
        return check_training(PretrainSettings.of({name: value for name, value in given.items() if value is not None}))

    return check


@pytest.fixture
def begin(ask):
    """Leaves what a run that was killed leaves: begin(...) -> TrainingJob."""

    def write(**options):
        job = ask(**options)
        job.request.write(job.output)
        return job

    return write


def names(job):
    return sorted(job.vocabulary.tokens, key=job.vocabulary.tokens.__getitem__)


def genes(job):
    return [name for name in names(job) if name not in SPECIALS]


def test_a_good_request(ask, blood_file):
    job = ask(cells_per_partition=100)
    assert job.done is None
    (atlas,) = job.atlases
    assert atlas.source.uri == str(blood_file)
    assert [partition.n_cells for partition in atlas.partitions] == [86, 87, 87]
    assert job.architecture.n_tokens == job.vocabulary.size == 67
    assert job.rules.max_length == 68  # no gene of a cell is left away
    assert not Path(job.output.uri).exists()  # nothing is written


def test_the_vocabulary_is_what_the_atlases_have(ask, blood, tmp_path):
    """Sorted names, also of two atlases that share some genes; special tokens at the end."""
    fewer, more = blood[:, :40].copy(), blood[:, 30:].copy()
    more.var["feature_name"] = [f"{name}x" if name == "GENE59" else name for name in more.var["feature_name"]]
    for name, adata in (("fewer", fewer), ("more", more)):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    job = ask(atlas=[str(tmp_path / "fewer.h5ad"), str(tmp_path / "more.h5ad")])
    expected = sorted({*fewer.var["feature_name"], *more.var["feature_name"]})
    assert "GENE59x" in expected
    assert names(job) == [*expected, *SPECIALS]


def test_a_vocabulary_file_allows_names_and_orders_them(ask, tmp_path):
    allowed = ["GENE7", "<cls>", "not there", "GENE3", "other2", "<pad>", "GENE5"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: token for token, name in enumerate(allowed)}))
    job = ask(vocabulary=str(tmp_path / "vocab.json"), min_coverage=0.0)
    assert names(job) == ["GENE7", "GENE3", "other2", "GENE5", *SPECIALS]


def test_a_checkpoint_brings_its_vocabulary_and_size(ask, checkpoint):
    job = ask(checkpoint=str(checkpoint))
    there = read_checkpoint(checkpoint)
    assert job.vocabulary == there.vocabulary
    assert job.architecture == there.architecture
    assert job.request.checkpoint == there.weights_sha256


MISTAKES = {
    "no atlas": ({"atlas": ["missing.h5ad"]}, AtlasError, r"missing.h5ad: no such file or folder"),
    "label column": ({"label_column": "kind"}, AtlasError, r"obs has no column kind; .* correct the column names"),
    "domain column": ({"domain_column": "assay"}, AtlasError, r"obs has no column assay"),
    "filter column": ({"validation_filter": "dono == 'd1'"}, AtlasError, r"obs has no column dono;"),
    "obs column": ({"obs_columns": ["tissue"]}, AtlasError, r"obs has no column tissue"),
    "filter type": (
        {"validation_filter": "donor == 3"},
        AtlasError,
        r"donor has type string, which does not fit 3; .* change --validation-filter",
    ),
    "filter syntax": ({"validation_filter": "donor = 'd1'"}, AtlasError, r"does not parse .* --validation-filter"),
    "reserved column": ({"label_column": "n_genes"}, ConfigError, r"the obs columns n_genes have reserved names"),
    "reserved in filter": ({"validation_filter": "count > 3"}, ConfigError, r"the obs columns count have"),
    "no checkpoint": ({"checkpoint": "missing"}, CheckpointError, r"missing has no args.json"),
    "no vocabulary": ({"vocabulary": "missing.json"}, ConfigError, r"--vocabulary missing.json: .*No such file"),
    "gene column": ({"gene_columns": ["symbol"]}, AtlasError, r"var has no column symbol; .*--gene-columns"),
    "filter selects nothing": ({"obs_filter": "donor == 'd9'"}, AtlasError, r"selects no cell; .*--obs-filter"),
    "snapshot of a file": ({"snapshot": 5}, ConfigError, r"--snapshot 5 for"),
    "layer": ({"layer": "counts"}, AtlasError, r"no layer counts; .*--layer"),
}


@pytest.mark.parametrize(("options", "kind", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(ask, tmp_path, monkeypatch, options, kind, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        ask(**options)
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_file_that_is_none(ask, tmp_path):
    (tmp_path / "vocab.json").write_text('["a"]')
    with pytest.raises(CheckpointError, match=r"vocab.json is not a JSON object"):
        ask(vocabulary=str(tmp_path / "vocab.json"))


def test_no_gene_is_allowed(ask, tmp_path):
    (tmp_path / "vocab.json").write_text('{"TP53": 0}')
    with pytest.raises(ConfigError, match=r"no gene has a usable name; .*--vocabulary"):
        ask(vocabulary=str(tmp_path / "vocab.json"))


def test_more_layers_to_freeze_than_there_are(ask, checkpoint):
    n_layers = read_checkpoint(checkpoint).architecture.nlayers
    assert ask(checkpoint=str(checkpoint), freeze_layers=n_layers).done is None
    with pytest.raises(ConfigError, match=rf"--freeze-layers {n_layers + 1} of a checkpoint with {n_layers} layers"):
        ask(checkpoint=str(checkpoint), freeze_layers=n_layers + 1)


def test_a_checkpoint_of_other_genes(ask, tmp_path):
    random_checkpoint(tmp_path / "other", ["GENE1", "TP53"], embsize=16, nheads=2, nlayers=1)
    with pytest.raises(GeneCoverageError, match=r"--min-coverage"):
        ask(checkpoint=str(tmp_path / "other"))


def test_values_that_are_no_counts(ask, blood, tmp_path):
    cells = blood.copy()
    cells.X[3, 4] = -1
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(AtlasError, match=r"cell cell-003 has -1"):
        ask(atlas=[str(tmp_path / "cells.h5ad")])


def test_a_label_column_must_be_in_every_atlas(ask, blood, blood_file, tmp_path):
    cells = blood.copy()
    del cells.obs["cell_type"]
    cells.write_h5ad(tmp_path / "unlabelled.h5ad")
    with pytest.raises(AtlasError, match=r"unlabelled.h5ad: obs has no column cell_type"):
        ask(atlas=[str(blood_file), str(tmp_path / "unlabelled.h5ad")], label_column="cell_type")


def test_groups_for_validation_are_chosen_before_a_cluster_starts(ask, blood, blood_file, tmp_path, caplog):
    """Over all atlases; null and `unknown` are no groups."""
    cells = blood.copy()
    cells.obs["donor"] = np.array(["d2", "d3", "unknown", None, "d4"], object)[np.arange(cells.n_obs) % 5]
    cells.write_h5ad(tmp_path / "more.h5ad")
    with caplog.at_level("INFO"):
        job = ask(atlas=[str(blood_file), str(tmp_path / "more.h5ad")], validate_by="donor", validation_share=0.5)
    assert job.split.groups == choose_groups(["d1", "d2", "d3", "d4"], 0.5, 0)
    assert f"2 of 4 groups of donor: {', '.join(job.split.groups)}; 104 cells of unknown group" in caplog.text
    assert job.atlases[0].source.obs_columns == ("donor",)
    assert ask(validation_share=0.5).split.groups == ()


def test_one_group_is_too_few_to_validate_by(ask):
    with pytest.raises(ConfigError, match=r"--validate-by donor: 1 known groups; expected at least two; name another"):
        ask(validate_by="donor", obs_filter="donor == 'd1'")


def test_an_output_that_cannot_be_written(ask, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/out cannot be written"):
        ask(output=str(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 700}, r"settings\.steps: 700 against \d+"),
        ({"label_column": "cell_type"}, "settings.label_column: 'cell_type' against None"),
        ({"seed": 1, "ties": "top"}, "settings.seed: 1 against 0, settings.ties: 'top' against '.*'"),
        ({"cells_per_partition": 100}, r"settings\.cells_per_partition: 100 against \d+"),
        (
            {"obs_filter": "donor == 'd1'"},
            "atlases.0.obs_filter: .* against None, settings.obs_filter: .*",
        ),
        ({"obs_columns": ["donor"]}, r"settings.obs_columns: \['donor'\] against \[\]"),
        ({"nlayers": 2}, "settings.nlayers: 2 against 1"),
    ],
)
def test_another_request_for_the_same_folder_is_refused(begin, ask, options, named):
    begin()
    with pytest.raises(
        OutputError, match=rf"out holds run \w+, this is \w+ \({named}\); .* give --output another folder"
    ):
        ask(**options)


def test_another_atlas_is_refused(begin, ask, blood, blood_file, tmp_path):
    begin()
    blood[:100].copy().write_h5ad(tmp_path / "other.h5ad")
    for atlas in ([str(tmp_path / "other.h5ad")], [str(blood_file), str(tmp_path / "other.h5ad")]):
        with pytest.raises(OutputError, match=r"atlases\.[01]\.uri: .* against "):
            ask(atlas=atlas)


def test_another_checkpoint_is_refused(begin, ask, tmp_path):
    for seed in (0, 1):
        random_checkpoint(tmp_path / str(seed), [f"GENE{n}" for n in range(60)], embsize=16, nheads=2, seed=seed)
    begin(checkpoint=str(tmp_path / "0"))
    with pytest.raises(OutputError, match=r"checkpoint: '.*' against '.*'"):
        ask(checkpoint=str(tmp_path / "1"))
    shutil.copytree(tmp_path / "0", tmp_path / "copy")
    ask(checkpoint=str(tmp_path / "copy"))  # the same weights elsewhere


def test_what_changes_no_number_may_change(begin, ask, blood_file, tmp_path, monkeypatch):
    job = begin()
    again = ask(workers=2, tokens_per_microbatch=100)
    assert again.request == job.request
    assert again.atlases[0].partitions == job.atlases[0].partitions
    monkeypatch.chdir(blood_file.parent)
    assert ask(atlas=[blood_file.name]).request == job.request


def test_a_finished_run_is_not_planned_again(begin, ask):
    job = begin()
    job.output.write(METRICS, json.dumps({"steps": 3}).encode())
    again = ask()
    assert again.done == {"steps": 3}
    assert again.atlases == ()
    with pytest.raises(OutputError, match=r"settings\.seed: 5 against 0"):
        ask(seed=5)


def test_a_soma_atlas_is_read_again_at_the_same_time(begin, ask, blood, make_soma, tmp_path):
    uri = make_soma(blood[:200].copy(), tmp_path / "atlas")
    options = {"atlas": [uri], "gene_columns": ["feature_name"]}
    job = begin(**options)
    make_soma(blood[200:].copy(), tmp_path / "atlas")
    again = ask(**options)
    assert again.request == job.request
    assert again.atlases[0].source == job.atlases[0].source
    assert [atlas["snapshot"] for atlas in job.request.atlases] == [job.atlases[0].source.timestamp]
    with pytest.raises(OutputError, match=r"\(atlases\.0\.snapshot: \d+ against \d+\)"):
        ask(**options, snapshot=job.request.atlases[0]["snapshot"] + 1)


def test_tokens_are_told_apart_by_what_makes_them(ask):
    plain = ask().tokens_fingerprint
    for same in ({"steps": 800}, {"workers": 2}, {"embsize": 32}, {"learning_rate": 0.1}):
        assert ask(**same).tokens_fingerprint == plain
    others = [
        {"ties": "top"},
        {"seed": 1},
        {"label_column": "cell_type"},
        {"domain_column": "donor"},
        {"obs_columns": ["donor"]},
        {"validation_share": 0.1},
        {"validation_filter": "donor == 'd1'"},
        {"validate_by": "donor"},
        {"obs_filter": "donor == 'd1'"},
    ]
    assert len({plain, *(ask(**other).tokens_fingerprint for other in others)}) == len(others) + 1


PART = TokenPart(
    "f", 0, "d", n_train=70, n_validation=5, n_tokens=900, labels={"B": 30, "T": 20}, domains={"x": 40, "y": 30}
)


def planned(job, **more):
    return training_of(job, (AtlasTokens(Folder.at("tokens"), (replace(PART, **more),)),), on_gpu=False)


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ({"n_train": 63}, {}, r"63 training cells; expected at least 64, .*; lower --cells-per-step, or"),
        (
            {"n_validation": 0},
            {},
            r"0 validation cells; .*--validation-filter or --validate-by, or raise --validation-share",
        ),
        (
            {"labels": {"B": 3}},
            {"label_column": "cell_type"},
            r"the column cell_type has 1 known values among the training cells; expected at least two",
        ),
        ({"domains": {}}, {"domain_column": "donor"}, r"the column donor has 0 known values"),
    ],
)
def test_cells_that_do_not_suffice(ask, part, options, message):
    with pytest.raises(ConfigError, match=message):
        planned(ask(**options), **part)


def test_what_workers_get(ask, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    job = ask(checkpoint=checkpoint.name, label_column="cell_type", domain_column="donor", min_length=100)
    training = planned(job)
    assert training.checkpoint == read_checkpoint(checkpoint).files  # a worker may run elsewhere
    assert training.cells.labels == ("B", "T")
    assert training.cells.domains == ("x", "y")
    assert (training.cells.n, training.validation.n) == (70, 5)
    assert training.tokens_per_microbatch == 4096  # two passes
    assert planned(ask(objective="masked")).tokens_per_microbatch == 8192
    np.testing.assert_allclose(training.cells.type_weights[0] @ [30, 20], 50, rtol=1e-6)
