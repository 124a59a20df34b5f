import pytest

from scgpt_ray.config import EmbedSettings, IndexSettings, MapSettings, ValidateSettings, parse_bytes
from scgpt_ray.errors import ConfigError

NEEDED = {"atlas": "a", "checkpoint": "c", "output": "o"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "embed: --atlas is missing; --checkpoint is missing; --output is missing; expected"),
        ({**NEEDED, "max_lenght": 3}, "unknown option --max-lenght"),
        ({**NEEDED, "max_length": 1}, "--max-length: input should be greater than or equal to 2, found 1"),
        ({**NEEDED, "ties": "mean"}, "--ties: input should be 'random' or 'top', found 'mean'"),
        ({**NEEDED, "seed": -1}, "--seed: .* found -1"),
        ({**NEEDED, "min_coverage": 1.5}, "--min-coverage: .* found 1.5"),
        ({**NEEDED, "precision": "float8"}, "--precision: .* found 'float8'"),
        ({**NEEDED, "obs_columns": ["embedding"]}, "embedding would clash with an output column"),
        ({**NEEDED, "obs_columns": ["a", "a"]}, "a column is named twice"),
        ({**NEEDED, "atlas": ""}, "--atlas: string should have at least 1 character"),
        ({**NEEDED, "cells_per_partition": 0}, "--cells-per-partition"),
        ({**NEEDED, "actors_per_gpu": 0}, "--actors-per-gpu: .* found 0"),
        ({**NEEDED, "actors_per_gpu": 2, "actors": 1}, "--actors-per-gpu needs GPUs"),
        ({**NEEDED, "actors_per_gpu": 2, "gpus": 0}, "--actors-per-gpu needs GPUs"),
    ],
)
def test_mistakes_are_told_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        EmbedSettings.of(options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("see scgpt-ray embed --help")


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("atlas: [", "expected valid YAML"),
        ("- a\n- b\n", "a list; expected a mapping"),
        ("", "a NoneType; expected a mapping"),
        ("atlas: a\ncheckpoint: c\noutput: o\nbatch_size: 3\n", "unknown option --batch-size"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "embed.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        EmbedSettings.load(str(path), {})


def test_a_missing_file():
    with pytest.raises(ConfigError, match="expected a readable file"):
        EmbedSettings.load("/nowhere.yaml", {})


@pytest.mark.parametrize(("text", "size"), [("8GB", 8 * 10**9), ("1.5 kb", 1500), ("12", 12), ("2tb", 2 * 10**12)])
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8 parsecs", "0"])
def test_bad_sizes(text):
    with pytest.raises(ConfigError, match="--memory-budget"):
        IndexSettings.of({"embeddings": "e", "output": "o", "memory_budget": text or " "})


def test_k_is_bounded():
    with pytest.raises(ConfigError, match="--k"):
        MapSettings.of({"query": "q", "index": "i", "checkpoint": "c", "output": "o", "k": 0})


@pytest.mark.parametrize("options", [{}, {"embeddings": "e", "index": "i"}])
def test_validate_takes_one_folder(options):
    with pytest.raises(ConfigError, match="one of --embeddings and --index"):
        ValidateSettings.of(options)
