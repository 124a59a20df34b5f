"""The command line: what it prints, its exit codes, and that bad input is refused before anything happens."""

import io
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import ray
import torch

from scgpt_ray import config, verbs
from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.identity import Fingerprint
from scgpt_ray.records import Plan
from scgpt_ray.storage import Folder


@pytest.mark.parametrize("verb", [*verbs.VERBS])
def test_help_shows_every_option_with_its_default(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == DONE
    for field in verbs.VERBS[verb].settings.model_fields.values():
        assert field.description, "every option says what it is"
    for name in verbs.VERBS[verb].settings.model_fields:
        assert "--" + name.replace("_", "-") in text


def test_help_is_there_without_a_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(verb in text for verb in verbs.VERBS)


def refused(capsys, arguments):
    """Run, and return the one line of a refusal."""
    was_on = ray.is_initialized()
    code = main(arguments)
    told = capsys.readouterr()
    assert code == BAD_INPUT, told.err
    assert ray.is_initialized() == was_on, "Ray is not asked for"
    assert told.out == ""
    (line,) = (line for line in told.err.splitlines() if line.startswith("scgpt-ray: "))
    assert "; expected " in line
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["embad"], "invalid choice: 'embad'"),
        (["embed", "--atlas", "a", "--batch-size", "3"], "unrecognized arguments: --batch-size 3"),
        (["embed", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["embed", "--ties", "mean"], "argument --ties: invalid choice: 'mean'"),
        (["embed", "--tiledb-config", "x"], "'x' is not KEY=VALUE"),
        (["embed"], "embed: --atlas is missing; --checkpoint is missing; --output is missing"),
        (["embed", "--config", "/nowhere.yaml"], "--config /nowhere.yaml"),
        (["map", "--k", "0"], "--k: input should be greater than or equal to 1, found 0"),
        (["validate"], "give one of --embeddings and --index"),
        (["validate", "--embeddings", "/nowhere"], "/nowhere has no manifest.json"),
        (["index", "--embeddings", "/nowhere", "--output", "/tmp/x"], "/nowhere has no manifest.json"),
        (["export", "--embeddings", "/nowhere", "--output", "/tmp/x.h5ad"], "/nowhere has no manifest.json"),
        (
            ["map", "--query", "q", "--index", "/nowhere", "--checkpoint", "c", "--output", "/tmp/x"],
            "/nowhere has no index.json",
        ),
    ],
)
def test_wrong_words(arguments, message, capsys):
    assert message in refused(capsys, arguments)


def test_options_are_not_abbreviated(capsys):
    assert "unrecognized arguments: --atl x" in refused(capsys, ["embed", "--atl", "x"])


@pytest.fixture
def embed(blood_file, checkpoint, tmp_path, capsys):
    """Run embed with some options changed, and return the line of its refusal."""

    def run(**changes):
        options = {
            "atlas": str(blood_file),
            "checkpoint": str(checkpoint),
            "output": str(tmp_path / "out"),
            **changes,
        }
        words = []
        for name, value in options.items():
            words += ["--" + name.replace("_", "-"), *(value if isinstance(value, list) else [str(value)])]
        line = refused(capsys, ["embed", *words])
        assert not (tmp_path / "out").exists(), "nothing is written"
        return line

    return run


@pytest.fixture
def altered(blood, tmp_path):
    """Write `blood` with changes."""

    def write(change):
        cells = blood.copy()
        change(cells)
        cells.write_h5ad(tmp_path / "altered.h5ad")
        return str(tmp_path / "altered.h5ad")

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atlas": "/nowhere"}, "/nowhere: no such file or folder"),
        ({"atlas": "/tmp"}, "/tmp"),
        ({"layer": "counts"}, "no layer counts; expected one of X"),
        ({"obs_columns": ["tissue"]}, "tissue"),
        ({"obs_filter": "cell_type =="}, "cell_type =="),
        ({"obs_filter": "tissue == 'blood'"}, "tissue"),
        ({"obs_filter": "cell_type == 'nothing'"}, "selects no cell"),
        ({"gene_columns": ["symbol"]}, "var has no column symbol; expected one of index, feature_name"),
        ({"gene_columns": ["index"]}, "hold 0.0% of the counts"),
        ({"gene_table": "/nowhere.csv"}, "/nowhere.csv"),
        ({"snapshot": 5}, "--snapshot 5"),
        ({"checkpoint": "/nowhere"}, "/nowhere has no"),
        ({"precision": "float64"}, "argument --precision: invalid choice: 'float64'"),
        ({"precision": "float16"}, "float16 was asked for on a CPU"),
        ({"gpus": 1}, "--gpus 1 on a machine without a GPU"),
        ({"gpus": 1, "actors": 2}, "give one of --gpus and --actors"),
        ({"max_length": 1}, "--max-length: input should be greater than or equal to 2, found 1"),
        ({"output": "/proc/nowhere/out"}, "cannot be written"),
    ],
)
def test_bad_options_of_embed(embed, changes, message):
    assert message in embed(**changes)


def test_a_truncated_file(embed, blood_file, tmp_path):
    path = tmp_path / "torn.h5ad"
    path.write_bytes(blood_file.read_bytes()[:5000])
    assert "torn.h5ad" in embed(atlas=path)


def test_a_measurement_or_layer_that_soma_lacks(embed, blood, make_soma, tmp_path):
    atlas = make_soma(blood, tmp_path / "atlas")
    assert "ADT" in embed(atlas=atlas, measurement="ADT")
    assert "normalized" in embed(atlas=atlas, layer="normalized")
    assert "selects no cell" in embed(atlas=atlas, obs_filter="cell_type == 'nothing'")


@pytest.mark.parametrize(("value", "shown"), [(-1, "-1"), (np.nan, "NaN"), (np.inf, "inf")])
def test_values_that_are_no_counts(embed, altered, value, shown):
    def change(cells):
        cells.X.data[-1] = value

    line = embed(atlas=altered(change))
    assert f"cell cell-259 has {shown} for gene" in line
    assert "expected finite counts >= 0" in line


def test_another_run_in_the_folder(blood_file, checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()

    there = Fingerprint(model={"seed": 1}, cells={"uri": "elsewhere"})
    Plan(created="now", fingerprint=there, settings={}, coverage={}, partitions=()).write(Folder.at(output))
    words = ["embed", "--atlas", str(blood_file), "--checkpoint", str(checkpoint), "--output", str(output)]
    line = refused(capsys, words)
    assert "holds run" in line
    assert "elsewhere" in line
    assert [path.name for path in output.iterdir()] == ["plan.json"]


def drop(name):
    return lambda folder: (folder / name).unlink()


def rewrite(name, **changes):
    def change(folder):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))

    return change


def retensor(change):
    def rewritten(folder):
        tensors = torch.load(folder / "best_model.pt", weights_only=True)
        change(tensors)
        torch.save(tensors, folder / "best_model.pt")

    return rewritten


class Code:
    def __reduce__(self):
        return print, ("this would have run",)


def code(folder):
    content = io.BytesIO()
    torch.save({"encoder.embedding.weight": Code()}, content, pickle_module=pickle)
    (folder / "best_model.pt").write_bytes(content.getvalue())


NORM = "transformer_encoder.layers.1.norm1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("args.json"), "args.json"),
        (drop("vocab.json"), "vocab.json"),
        (drop("best_model.pt"), "best_model.pt"),
        (rewrite("vocab.json", GENE1=0), "vocab.json"),
        (rewrite("args.json", nlayers=3), "layers.2"),
        (rewrite("args.json", nheads=5), "nheads"),
        (retensor(lambda tensors: tensors.pop(NORM)), NORM),
        (retensor(lambda tensors: tensors.update({NORM: torch.ones(3)})), NORM),
        (retensor(lambda tensors: tensors.update({"surprise": torch.ones(3)})), "surprise"),
        (code, "best_model.pt"),
    ],
)
def test_bad_checkpoints(embed, checkpoint, tmp_path, change, message):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    change(folder)
    assert message in embed(checkpoint=folder)


def test_an_unknown_key_in_the_file(embed, tmp_path):
    (tmp_path / "embed.yaml").write_text("batch_size: 64\n")
    assert "unknown option --batch-size" in embed(config=tmp_path / "embed.yaml")


def test_settings_and_jobs_agree(request):
    """Every YAML beside a job is valid for its verb."""
    jobs = request.config.rootpath / "jobs"
    verb_of = {
        "embed": config.EmbedSettings,
        "build_index": config.IndexSettings,
        "map_query": config.MapSettings,
        "integrate": config.IntegrateSettings,
        "pretrain": config.PretrainSettings,
    }
    assert {path.stem for path in (jobs / "configs").glob("*.yaml")} == set(verb_of)
    for stem, settings in verb_of.items():
        assert settings.load(str(jobs / "configs" / f"{stem}.yaml"), {})
        assert (jobs / f"{stem}.py").is_file()


def test_the_module_is_the_program():
    shown = subprocess.run([sys.executable, "-m", "scgpt_ray", "--help"], capture_output=True, text=True, check=True)
    assert "embed" in shown.stdout
