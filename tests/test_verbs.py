"""The table of verbs, and the functions of the package that come from it."""

import inspect
import pickle
from importlib import import_module
from typing import Literal

import pytest

import scgpt_ray
from scgpt_ray import config
from scgpt_ray.errors import ConfigError
from scgpt_ray.verbs import VERBS


def test_the_package_has_a_function_for_each_verb():
    names = [verb.name for verb in VERBS.values()]
    assert sorted([*names, "embed_data", "tl"]) == scgpt_ray.__all__
    assert sorted([*scgpt_ray.__all__, "__version__"]) == dir(scgpt_ray)
    for name in names:
        function = getattr(scgpt_ray, name)
        assert (function.__name__, function.__module__) == (name, "scgpt_ray")
        assert pickle.loads(pickle.dumps(function)) is function


def test_other_names_are_unknown():
    with pytest.raises(AttributeError, match="module 'scgpt_ray' has no attribute 'embad'"):
        scgpt_ray.embad  # noqa: B018


@pytest.mark.parametrize("verb", VERBS.values(), ids=[*VERBS])
def test_what_the_table_names_is_there_and_describes_itself(verb):
    """The result of each function, as its annotation says, is what the table says and a `Result`."""
    module, _, name = verb.home.partition(":")
    function = getattr(import_module(f"scgpt_ray.{module}"), name)
    result = inspect.signature(function, eval_str=True).return_annotation
    assert verb.returns.startswith(f"{result.__name__}: ")
    assert callable(result.text)
    assert callable(result.to_dict)
    first, *_ = inspect.signature(function, eval_str=True).parameters.values()
    assert first.annotation is verb.settings_class()


def test_a_function_shows_the_options_of_its_verb():
    signature = inspect.signature(scgpt_ray.embed)
    shown = {name: (each.annotation, each.default) for name, each in signature.parameters.items()}
    assert list(shown)[:3] == ["atlas", "checkpoint", "output"]
    assert shown["atlas"] == (str, inspect.Parameter.empty)
    assert shown["obs_columns"] == (tuple[str, ...], ())
    assert shown["storage"] == (dict[str, str], {})
    assert shown["gpus"] == (int | None, None)
    assert shown["ties"] == (Literal["random", "top"], "random")
    assert signature.return_annotation == "Manifest"
    assert {each.kind for each in signature.parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert [*shown] == [name for names in config.EmbedSettings.groups().values() for name in names]


def test_a_function_says_what_it_does_takes_returns_and_raises():
    text = inspect.getdoc(scgpt_ray.embed)
    assert text.startswith("Embed every cell of an atlas with scGPT; resumable.\n\nArgs:\n    atlas: Cells to embed: ")
    assert "\n    max_length: Most tokens per cell, including <cls>; longer cells are sampled.\n" in text
    assert "\nReturns:\n    Manifest: " in text
    assert "\nRaises:\n    InputError: " in text


def test_a_call_checks_its_options():
    for options, message in (
        ({"index": "i", "embeddings": "e"}, "give one of"),
        ({"indx": "i"}, "unknown option --indx; .*did you mean --index"),
    ):
        with pytest.raises(ConfigError, match=message):
            scgpt_ray.validate(**options)


def test_a_call_runs_the_verb(make_embeddings, tmp_path):
    run = make_embeddings(tmp_path / "run")
    assert scgpt_ray.validate(embeddings=run.uri) == []
    (run.path / "parts" / "part-00001.parquet").unlink()
    assert any("part" in problem for problem in scgpt_ray.validate(embeddings=run.uri))
