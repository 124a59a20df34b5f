"""The options of all verbs."""

import ast
import shlex
from pathlib import Path
from typing import Annotated, get_type_hints

import pytest
from pydantic import TypeAdapter

import scgpt_ray
from scgpt_ray.cli import _read
from scgpt_ray.config import EmbedSettings, IndexSettings, MapSettings, PlanSettings
from scgpt_ray.config.settings import did_you_mean
from scgpt_ray.errors import ConfigError
from scgpt_ray.verbs import VERBS

NEEDED = {"atlas": "a", "checkpoint": "c", "output": "o"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "embed: --atlas is missing; --checkpoint is missing; --output is missing; expected"),
        (
            {**NEEDED, "max_lenght": 3},
            "unknown option --max-lenght; .* option of this verb; did you mean --max-length\\?$",
        ),
        ({**NEEDED, "max_length": 1}, "--max-length is 1; expected greater than or equal to 2 for --max-length; see"),
        ({**NEEDED, "samples": 0}, "--samples is 0; expected greater than or equal to 1 for --samples; see"),
        ({**NEEDED, "samples": 65}, "--samples is 65; expected less than or equal to 64 for --samples; see"),
        ({**NEEDED, "ties": "mean"}, "--ties is 'mean'; expected 'random' or 'top' for --ties; see"),
        ({**NEEDED, "seed": -1}, "--seed is -1; expected greater than or equal to 0"),
        ({**NEEDED, "min_coverage": 1.5}, "--min-coverage is 1.5; expected less than or equal to 1"),
        ({**NEEDED, "precision": "float8"}, "--precision is 'float8'"),
        ({**NEEDED, "obs_columns": ["embedding"]}, "embedding would clash with an output column"),
        ({**NEEDED, "obs_columns": ["a", "a"]}, "a column is named twice"),
        ({**NEEDED, "atlas": ""}, "--atlas is ''; expected at least 1 character for --atlas; see"),
        ({**NEEDED, "cells_per_partition": 0}, "--cells-per-partition"),
        ({**NEEDED, "gpus": 1, "actors": 1}, "give one of --gpus and --actors; expected options that agree; see"),
        (
            {**NEEDED, "seed": "x", "k": 1},
            "unknown option --k; --seed is 'x'; expected an option of this verb, a v",
        ),
        ({**NEEDED, "storage": ["region=a", "b"]}, "--storage: 'b' is not KEY=VALUE; expected another value"),
        ({**NEEDED, "actors_per_gpu": 0}, "--actors-per-gpu is 0; expected greater than or equal to 1"),
        ({**NEEDED, "actors_per_gpu": 2, "actors": 1}, "--actors-per-gpu needs GPUs"),
        ({**NEEDED, "flavor": "seurat"}, "--flavor and --rank-by need --highly-variable; expected options that agree"),
        ({**NEEDED, "actors_per_gpu": 2, "device": "cpu"}, "--actors-per-gpu needs GPUs"),
        ({**NEEDED, "device": "gpu", "actors": 2}, "--device gpu and --actors contradict each other"),
        ({**NEEDED, "device": "cpu", "gpus": 2}, "--device cpu and --gpus contradict each other"),
        ({**NEEDED, "gpus": 2, "min_gpus": 3}, "--min-gpus is more than --gpus"),
        ({**NEEDED, "wait_for_gpus": "1 day"}, "'1 day' is not a time like 20m"),
    ],
)
def test_mistakes_are_reported_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        EmbedSettings.of(options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(("; see scgpt-ray embed --help", "; did you mean --max-length?"))


def test_lists_and_words_are_read():
    words = {"obs_columns": ["a", "b"], "storage": ["region=us-west-2", "profile=b=c"], "seed": "3"}
    settings = EmbedSettings.of({**NEEDED, **words})
    assert settings.obs_columns == ("a", "b")
    assert settings.storage == {"region": "us-west-2", "profile": "b=c"}
    assert settings.seed == 3


@pytest.mark.parametrize("make", [EmbedSettings.of, lambda options: EmbedSettings(**options)])
def test_one_text_is_a_list_of_one(make):
    settings = make({**NEEDED, "obs_columns": "cell_type", "gene_columns": "symbol"})
    assert (settings.obs_columns, settings.gene_columns) == (("cell_type",), ("symbol",))


@pytest.mark.parametrize("verb", [*VERBS])
def test_each_list_of_texts_may_be_one_text(verb):
    settings = VERBS[verb].settings_class()
    for name, hint in get_type_hints(settings).items():
        if hint == tuple[str, ...] and name in settings.model_fields:
            info = settings.model_fields[name]
            values = TypeAdapter(Annotated[info.annotation, *info.metadata])
            assert values.validate_python("donor") == ("donor",), name


def test_a_file_may_name_one_column(tmp_path):
    (tmp_path / "embed.yaml").write_text("obs-columns: cell_type\n")
    assert EmbedSettings.load(str(tmp_path / "embed.yaml"), NEEDED).obs_columns == ("cell_type",)
    with pytest.raises(ConfigError, match="--obs-columns is ''; expected at least 1 character"):
        EmbedSettings.of({**NEEDED, "obs_columns": ""})


@pytest.mark.parametrize("verb", [*VERBS])
def test_each_option_has_one_heading_and_a_help_with_its_default(verb):
    settings = VERBS[verb].settings_class()
    assert settings.verb == verb
    assert sorted(name for names in settings.groups().values() for name in names) == sorted(settings.model_fields)
    for name, info in settings.model_fields.items():
        text = " ".join((info.description or "").split())
        assert text.endswith("."), name
        says_default = "efault: " in text or "(the default)" in text
        assert says_default == (info.get_default(call_default_factory=True) in (None, (), {})), name


def test_each_option_is_read_somewhere():
    read = set()
    for file in Path(scgpt_ray.__file__).parent.rglob("*.py"):
        nodes = [*ast.walk(ast.parse(file.read_text()))]
        read |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    accepted = {name for verb in VERBS.values() for name in verb.settings_class().model_fields}
    assert accepted - read == set()


def test_plan_takes_no_option_that_it_does_not_use():
    assert EmbedSettings.model_fields.keys() - PlanSettings.model_fields.keys() == {
        "max_failed", "tracking", "wait", "wait_for_gpus",
    }  # fmt: skip


@pytest.mark.parametrize("verb", [*VERBS])
def test_examples_are_options_of_their_verb(verb):
    settings = VERBS[verb].settings_class()
    assert len(settings.examples) == 3
    for example in settings.examples:
        program, *words = shlex.split(example)
        name, options = _read(words)
        assert (program, name) == ("scgpt-ray", verb)
        assert settings.of({key: value for key, value in options.items() if key != "config"})


def test_headings():
    assert list(EmbedSettings.groups()) == [
        "Input and output",
        "Tokens and network",
        "Highly variable genes",
        "Cells and genes",
        "Compute",
        "Object stores",
        "Tracking",
    ]
    assert EmbedSettings.groups()["Input and output"] == ["atlas", "checkpoint", "output"]


@pytest.mark.parametrize(
    ("word", "remedy"), [("embad", "did you mean embed?"), ("idnex", "did you mean index?"), ("x", "see the help")]
)
def test_did_you_mean(word, remedy):
    assert did_you_mean(word, ["embed", "index"], "see the help") == remedy


def test_precision_is_left_to_the_device():
    assert EmbedSettings.of(NEEDED).precision == "auto"
    assert MapSettings.of({"query": "q", "index": "i", "checkpoint": "c", "output": "o"}).precision == "auto"


def test_settings_are_frozen():
    settings = EmbedSettings.of(NEEDED)
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3


def test_options_beat_the_file_and_the_file_beats_defaults(tmp_path):
    path = tmp_path / "embed.yaml"
    path.write_text("atlas: a\ncheckpoint: c\noutput: o\nmax-length: 600\nseed: 5\n")
    settings = EmbedSettings.load(str(path), {"seed": 7})
    assert (settings.max_length, settings.seed, settings.ties) == (600, 7, "random")


@pytest.mark.parametrize(("text", "size"), [("8GB", 8 * 10**9), ("1.5 kb", 1500), ("12", 12), ("2tb", 2 * 10**12)])
def test_sizes(text, size):
    assert IndexSettings.of({"embeddings": "e", "output": "o", "memory_budget": text}).memory_budget == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8 parsecs", "0"])
def test_bad_sizes(text):
    with pytest.raises(ConfigError, match="--memory-budget"):
        IndexSettings.of({"embeddings": "e", "output": "o", "memory_budget": text or " "})


@pytest.mark.parametrize(
    "options",
    [
        {"atlas": "s3://key:hunter2@bucket/atlas"},
        {"census_directory": "https://me:hunter2@host/release.json"},
        {"gene_table": "s3://bucket/genes.csv?access_key=a&secret_key=hunter2"},
        {"gene_columns": ["name", "s3://key:hunter2@bucket"]},
    ],
)
def test_passwords_in_options_are_refused_and_not_repeated(options):
    with pytest.raises(ConfigError, match="holds a password, which belongs in the environment") as error:
        EmbedSettings.of({"atlas": "a", "checkpoint": "c", "output": "o", **options})
    assert "hunter2" not in str(error.value)
