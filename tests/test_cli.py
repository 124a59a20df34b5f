"""The command line: what it prints, its exit codes, and that bad input is refused before anything happens."""

import gc
import json
import os
import shlex
import subprocess
import sys
from functools import partial

import pytest
import yaml

from scgpt_ray import __version__
from scgpt_ray.cli import BAD_INPUT, DONE, FAILED, NEW_OBJECTS, SPINS, main
from scgpt_ray.config.settings import option_name
from scgpt_ray.pipelines import plan_probe
from scgpt_ray.verbs import VERBS, Verb


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


def test_what_libraries_print_is_not_part_of_the_result(make_embeddings, tmp_path, capsys, monkeypatch):
    """Ray prints messages of the raylet to stdout."""
    make_embeddings(tmp_path)
    run = Verb.run

    def chatty(verb, settings):
        print("(raylet) a task is tried again")  # noqa: T201
        return run(verb, settings)

    monkeypatch.setattr(Verb, "run", chatty)
    assert main(["validate", "--embeddings", str(tmp_path)]) == DONE
    found = capsys.readouterr()
    assert "raylet" not in found.out
    assert "(raylet) a task is tried again" in found.err


def test_the_output_in_the_result_is_absolute(make_embeddings, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_embeddings(tmp_path / "run")
    assert main(["export", "--embeddings", "run", "--output", "cells.h5ad"]) == DONE
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == {"verb": "export", "output": str(tmp_path / "cells.h5ad"), "n_cells": 20}


def test_export_does_not_replace_a_file_of_the_user(make_embeddings, tmp_path, capsys):
    make_embeddings(tmp_path / "run")
    (tmp_path / "own.h5ad").write_bytes(b"my cells")
    words = ["export", "--embeddings", str(tmp_path / "run"), "--output", str(tmp_path / "own.h5ad")]
    assert main(words) == BAD_INPUT
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scgpt-ray:")]
    assert "own.h5ad exists and is not an unchanged earlier export; expected a new file" in line
    assert "; name another file, or delete this one" in line
    assert (tmp_path / "own.h5ad").read_bytes() == b"my cells"


def test_each_verb_that_works_has_a_recipe(request):
    files = sorted((request.config.rootpath / "jobs" / "configs").glob("*.yaml"))
    assert {path.stem for path in files} == {*VERBS} - {"submit", "status", "prune"}
    for path in files:
        assert yaml.safe_load(path.read_text())["verb"] == path.stem
        assert VERBS[path.stem].settings_class().load(str(path), {})


@pytest.mark.slow
@pytest.mark.parametrize("verb", [name for name in VERBS if name not in ("demo", "submit")])
def test_the_examples_of_help_run_in_the_folder_of_a_demo(verb, demo_folder, monkeypatch, capsys):
    monkeypatch.chdir(demo_folder)
    monkeypatch.setattr(plan_probe, "_SECONDS", 0.2)
    monkeypatch.setattr(plan_probe, "start_s", lambda *_, **__: 5.0)  # test_pipelines_plan.py measures it
    for example in VERBS[verb].settings_class().examples:
        assert main(shlex.split(example)[1:]) == DONE, capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "spins"), [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_idle_threads_sleep_soon_unless_the_user_decides(given, spins, monkeypatch, capsys):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what is set is not kept
    main(["no-such-verb"])
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_garbage_is_looked_for_less_often(capsys, request):
    request.addfinalizer(partial(gc.set_threshold, *gc.get_threshold()))
    gc.set_threshold(1, 2, 3)
    main(["no-such-verb"])
    assert gc.get_threshold() == (NEW_OBJECTS, 2, 3)


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
