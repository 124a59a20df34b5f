"""The list of named checkpoints."""

import hashlib
import json
from dataclasses import replace

import pytest

from scgpt_ray.cli import DONE, main
from scgpt_ray.config import CheckpointsSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.network.published import PUBLISHED, Known
from scgpt_ray.pipelines.checkpoints import checkpoints


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCGPT_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def listed(*names, download=False):
    return {each.name: each for each in checkpoints(CheckpointsSettings(names=names, download=download)).checkpoints}


def test_all_names_are_listed_with_what_is_known():
    found = listed()
    assert list(found) == [*PUBLISHED, "demo"]
    assert [name for name, each in found.items() if each.is_cached] == ["demo"]
    assert found["whole-human"].size == 1_300 + 1_317_639 + 205_385_258
    assert found["brain"].size is None
    assert found["whole-human"].licence.startswith("unknown")


def test_a_download_is_listed_as_cached(cache, checkpoint, monkeypatch):
    files = {name: Known() for name in PUBLISHED["brain"].files}
    there = replace(PUBLISHED["brain"], sources=(f"file://{checkpoint}",), files=files)
    monkeypatch.setitem(PUBLISHED, "brain", there)
    found = listed("brain", download=True)["brain"]
    assert found.is_cached
    assert found.folder == str(cache / "brain")
    assert found.size == sum((checkpoint / name).stat().st_size for name in files)
    assert found.sha256 == {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in files}


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="--names hart; expected one of whole-human, "):
        listed("hart")


def test_the_printed_list(cache, capsys):
    assert main(["checkpoints", "--names", "whole-human", "demo"]) == DONE
    *lines, result = capsys.readouterr().out.splitlines()
    assert lines[0] == "whole-human  33 million normal human cells"
    assert lines[1] == "    206.7 MB, not in the cache"
    assert lines[-1] == f"cache  {cache}"
    assert [each["name"] for each in json.loads(result)["checkpoints"]] == ["whole-human", "demo"]
