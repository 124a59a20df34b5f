"""The command line: what it prints, its exit codes, and that bad input is refused before anything happens."""

import io
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from scgpt_ray import __version__
from scgpt_ray.cli import BAD_INPUT, DONE, FAILED, main
from scgpt_ray.config.settings import option_name
from scgpt_ray.identity import Fingerprint
from scgpt_ray.records import Plan
from scgpt_ray.storage import Folder
from scgpt_ray.verbs import VERBS


def shown(capsys, *arguments):
    """What the program shows and ends with."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == DONE
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", [*VERBS])
def test_help_of_a_verb(verb, capsys):
    text = shown(capsys, verb, "--help")
    settings = VERBS[verb].settings_class()
    assert VERBS[verb].summary in text
    assert [text.count(f"\n  {option_name(name)} ") for name in settings.model_fields] == [1] * len(
        settings.model_fields
    )
    assert text.count(f"\n  scgpt-ray {verb}") == 3


def test_help_of_the_program(capsys):
    text = shown(capsys, "--help")
    assert all(f"\n    {name}" in text for name in VERBS)
    assert shown(capsys, "--version") == f"scgpt-ray {__version__}\n"


GIVEN = ["embed", "--atlas", "a", "--checkpoint", "c", "--output", "o"]


def ray_runs():
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def refused(capsys, arguments):
    """Run, and return the one line of a refusal."""
    was_on = ray_runs()
    code = main(arguments)
    told = capsys.readouterr()
    assert code == BAD_INPUT, told.err
    assert ray_runs() == was_on, "Ray is not asked for"
    assert told.out == ""
    (line,) = (line for line in told.err.splitlines() if line.startswith("scgpt-ray: "))
    assert "; expected " in line
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no verb; expected one of embed, index, map, "),
        ([], ", benchmark; see scgpt-ray --help"),
        (["--foo"], "unknown option --foo; expected one of embed, index,"),
        (["embad"], "unknown verb embad; expected one of embed, index, "),
        (["embad"], "; did you mean embed?"),
        (["frobnicate"], "; see scgpt-ray --help"),
        (["embed", "--atlas", "a", "--batch-size", "3"], "embed: unknown option --batch-size; "),
        (["embed", "--max_length=1"], "embed: --max-length is '1'; "),
        (["embed", "--max-lenght=3"], "; did you mean --max-length?"),
        (["embed", "--frobnicate", "3"], "; see scgpt-ray embed --help"),
        (["embed", "cells.h5ad"], "embed: cells.h5ad belongs to no option; expected options, which start with --"),
        (["embed", "--seed"], "embed: --seed has no value; expected one value; see scgpt-ray embed --help"),
        (["embed", "--obs-columns", "--seed", "1"], "--obs-columns has no value; expected at least one value"),
        (["index", "--append=yes"], "index: --append: ignored explicit argument 'yes'; expected options and"),
        ([*GIVEN, "--seed", "x"], "embed: --seed is 'x'; expected a valid integer for --seed; see scgpt-ray embed"),
        ([*GIVEN, "--ties", "mean"], "embed: --ties is 'mean'; expected 'random' or 'top' for --ties"),
        (["embed", "--tiledb-config", "x"], "'x' is not KEY=VALUE"),
        (["embed"], "embed: --atlas is missing; --checkpoint is missing; --output is missing"),
        (["embed", "--config", "/nowhere.yaml"], "--config /nowhere.yaml"),
        (["map", "--k", "0"], "expected greater than or equal to 1 for --k"),
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
    assert "unknown option --atl;" in refused(capsys, ["embed", "--atl", "x"])


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
        ({"precision": "float64"}, "--precision is 'float64'; expected 'auto', 'float32', 'bfloat16' or 'float16' for"),
        ({"precision": "float16"}, "float16 was asked for on a CPU"),
        ({"gpus": 1}, "--gpus 1 on a machine without a GPU"),
        ({"gpus": 1, "actors": 2}, "give one of --gpus and --actors"),
        ({"max_length": 1}, "--max-length is '1'; expected greater than or equal to 2"),
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
    (tmp_path / "embed.yaml").write_text("max_lenght: 64\n")
    line = embed(config=tmp_path / "embed.yaml")
    assert "unknown option --max-lenght" in line
    assert line.endswith("did you mean --max-length?")


@pytest.mark.parametrize("is_whole", [True, False])
def test_what_a_run_prints_and_ends_with(is_whole, make_embeddings, tmp_path, capsys):
    run = make_embeddings(tmp_path / "run")
    if not is_whole:
        (run.path / "parts" / "part-00001.parquet").unlink()
    assert main(["validate", "--embeddings", run.uri]) == (DONE if is_whole else FAILED)
    *lines, result = capsys.readouterr().out.splitlines()
    values = json.loads(result)
    assert (values["verb"], values["ok"]) == ("validate", is_whole)
    assert lines == ([*values["problems"], values["remedy"]] if values["problems"] else ["no problems found"])


def test_the_output_in_the_result_is_absolute(make_embeddings, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_embeddings(tmp_path / "run")
    assert main(["export", "--embeddings", "run", "--output", "cells.h5ad"]) == DONE
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == {"verb": "export", "output": str(tmp_path / "cells.h5ad"), "n_cells": 20}


def test_files_of_jobs_are_options_of_their_verb(request):
    files = sorted((request.config.rootpath / "jobs" / "configs").glob("*.yaml"))
    assert [path.stem for path in files] == ["embed", "index", "integrate", "map", "pretrain"]
    for path in files:
        assert VERBS[path.stem].settings_class().load(str(path), {})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("verb", [name for name in VERBS if name != "demo"])
def test_the_examples_of_help_run_in_the_folder_of_a_demo(verb, demo_run, monkeypatch, capsys):
    monkeypatch.chdir(demo_run[0].parent)
    for example in VERBS[verb].settings_class().examples:
        assert main(shlex.split(example)[1:]) == DONE, capsys.readouterr().err


def test_the_module_is_the_program():
    done = subprocess.run([sys.executable, "-m", "scgpt_ray", "--help"], capture_output=True, text=True, check=True)
    assert "embed" in done.stdout


def test_completion(tmp_path):
    """As a shell asks for it."""
    found = {}
    for line in ("scgpt-ray em", "scgpt-ray map --balance", "scgpt-ray embed --ties "):
        asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
        asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "found")
        subprocess.run([sys.executable, "-m", "scgpt_ray"], env={**os.environ, **asked}, check=True)
        found[line] = (tmp_path / "found").read_text().split()
    assert found == dict(zip(found, (["embed"], ["--balance-by"], ["random", "top"]), strict=True))
