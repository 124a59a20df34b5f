"""True labels in the words of the reference."""

import numpy as np
import pytest

from scgpt_ray.errors import ConfigError, InputError
from scgpt_ray.pipelines.truth import read_truth_map, translated, vocabulary_gap


@pytest.mark.parametrize("content", ["CD8 T,T\nB,B cell\n", "CD8 T\tT\n\nB\tB cell", '﻿"CD8 T",T\nB,B cell\nB,B cell\n'])
def test_a_map_translates(tmp_path, content):
    (tmp_path / "map").write_text(content)
    found = read_truth_map(str(tmp_path / "map"))
    assert found == {"CD8 T": "T", "B": "B cell"}
    assert translated(np.array(["B", None, "NK"], object), found).tolist() == ["B cell", None, "NK"]


def test_without_a_map():
    assert read_truth_map(None) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,c\n", "line 1 is 'a,b,c'; expected a line for each true label"),
        ("a,b\na\n", "line 2 is 'a'"),
        ("a,\n", "line 1 is 'a,'"),
        ("a,b\na,c\n", "line 2 has 'a' again"),
        (None, "No such file"),
    ],
)
def test_what_is_no_map(tmp_path, content, message):
    if content is not None:
        (tmp_path / "map").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_truth_map(str(tmp_path / "map"))


def test_vocabularies_that_hardly_meet():
    truth = np.array(["Mono"] * 6 + ["T"] * 5 + [None, "unknown"], object)
    assert vocabulary_gap(truth, {"T", "Mono", "B", None}) == (1.0, None)
    share, text = vocabulary_gap(truth, ["T", "B", None])
    assert share == pytest.approx(5 / 11)
    assert text.startswith("45% of the cells have a true label that the reference has. True labels: Mono, T. ")
    assert "Labels of the reference: B, T. --truth-map FILE" in text
    share, text = vocabulary_gap(truth, [f"type {number:02}" for number in range(25)])
    assert (share, text.startswith("not evaluated: 0% of")) == (0, True)
    assert "type 19 and 5 others." in text
    with pytest.raises(InputError, match="none of 2 query cells has a true label"):
        vocabulary_gap(np.array([None, "nan"], object), ["T"])
