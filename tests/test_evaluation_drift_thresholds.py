"""The file of thresholds: complete, explained, and what a user's file may hold."""

from dataclasses import fields

import pytest

from scgpt_ray.errors import ConfigError
from scgpt_ray.evaluation.drift.thresholds import DEFAULTS, Thresholds, reasons

NAMES = [field.name for field in fields(Thresholds)]


def test_each_threshold_has_a_value_and_a_reason():
    found = Thresholds.load(None)
    assert all(getattr(found, name) is not None for name in NAMES)
    assert [*reasons()] == NAMES
    assert all(text.endswith(".") and "#" not in text and len(text) > 60 for text in reasons().values())


def test_a_file_replaces_what_it_names(tmp_path):
    (tmp_path / "mine.yaml").write_text("empty_rise: 0.5\nmean_shift: null\nleast_cells: 3\n")
    found, default = Thresholds.load(str(tmp_path / "mine.yaml")), Thresholds.load(None)
    assert (found.empty_rise, found.mean_shift, found.least_cells) == (0.5, None, 3)
    assert found.purity_fall == default.purity_fall
    assert Thresholds.load(str(DEFAULTS)) == default


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("empty_rize: 1", "unknown threshold empty_rize; .*; did you mean empty_rise?"),
        ("empty_rise: much", "empty_rise is 'much'; expected a number of at least 0, or null"),
        ("empty_rise: -1", "empty_rise is -1"),
        ("empty_rise: true", "empty_rise is True"),
        ("empty_rise: .nan", "empty_rise is nan"),
        ("least_cells: 1", "least_cells is 1; expected a whole number of at least 2"),
        ("least_cells: null", "least_cells is None"),
        ("- 3", "no mapping; expected lines of `threshold: value`"),
        ("", "no mapping"),
        ("a: [", "expected a YAML file"),
    ],
)
def test_what_is_refused(content, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        Thresholds.load(str(tmp_path / "mine.yaml"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"--thresholds .*none.yaml"):
        Thresholds.load(str(tmp_path / "none.yaml"))
