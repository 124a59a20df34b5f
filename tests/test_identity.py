"""Fingerprints: equal for equal content; and refusals that name what differs."""

from dataclasses import asdict

import pytest

from scgpt_ray.errors import OutputError, ReferenceSetError
from scgpt_ray.identity import Fingerprint, differences, digest_of, require_same_model, require_same_run

ONE = Fingerprint(model={"weights": "w", "seed": 0}, cells={"uri": "atlas", "obs_columns": ["a"]})


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ({"b": 1, "a": [1, 2]}, {"a": [1, 2], "b": 1}),
        ({"a": ("x",)}, {"a": ["x"]}),  # JSON has no tuples
    ],
)
def test_a_digest_does_not_depend_on_order_or_container(values, same):
    assert digest_of(values) == digest_of(same)
    assert len(digest_of(values)) == 64


@pytest.mark.parametrize("other", [{"a": [2, 1]}, {"a": ["1", 2]}, {"a": [1, 2], "b": None}, {"A": [1, 2]}])
def test_a_digest_depends_on_all_else(other):
    assert digest_of({"a": [1, 2]}) != digest_of(other)


def test_the_digest_of_a_fingerprint_is_that_of_its_content():
    assert ONE.digest == digest_of({"model": {"seed": 0, "weights": "w"}, "cells": ONE.cells})
    assert Fingerprint(model=ONE.model, cells={"uri": "other", "obs_columns": []}).digest != ONE.digest


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        ({"a": 1, "b": "x"}, {"b": "x", "a": 1}, ""),
        ({"b": 1, "a": 2}, {"b": 2, "a": 3}, "a: 2 against 3, b: 1 against 2"),
        ({"a": "x"}, {}, "a: 'x' against None"),
        ({"a": {"b": {"c": 1}, "d": 2}}, {"a": {"b": {"c": 3}, "d": 2}}, "a.b.c: 1 against 3"),
        ({"a": {"b": 1}}, {"a": {}}, "a: None against {}, a.b: 1 against None"),
        ({"a": [1, 2]}, {"a": [2, 1]}, "a: [1, 2] against [2, 1]"),
        ({"a": [{"u": 1, "v": 2}]}, {"a": [{"u": 1, "v": 3}, {"u": 4}]}, "a.0.v: 2 against 3, a.1.u: None against 4"),
    ],
)
def test_differences_name_the_key_and_both_values(one, other, named):
    assert differences(one, other) == named


def test_another_run_is_refused():
    other = Fingerprint(model={"weights": "v", "seed": 0}, cells={"uri": "atlas", "obs_columns": ["a"]})
    require_same_run("out", asdict(ONE), asdict(Fingerprint(dict(ONE.model), dict(ONE.cells))))
    with pytest.raises(OutputError) as caught:
        require_same_run("out", asdict(ONE), asdict(other))
    assert caught.value.found == (
        f"out holds run {other.digest[:12]}, this is {ONE.digest[:12]} (model.weights: 'w' against 'v')"
    )
    assert caught.value.remedy == "give --output another folder"


def test_another_model_is_refused():
    require_same_model("a", ONE.model, "b", dict(ONE.model))
    with pytest.raises(ReferenceSetError, match=r"^a and b differ in the model \(seed: 0 against 1\); .*--checkpoint"):
        require_same_model("a", ONE.model, "b", {**ONE.model, "seed": 1})
