"""Fingerprints: equal for equal content, and telling what differs."""

import pytest

from scgpt_ray.identity import Fingerprint, digest_of

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


def test_round_trip_and_digests():
    again = Fingerprint.from_dict(ONE.to_dict())
    assert again == ONE
    assert again.digest == ONE.digest
    elsewhere = Fingerprint(model=ONE.model, cells={"uri": "other", "obs_columns": []})
    assert elsewhere.digest != ONE.digest


def test_differences_name_both_values():
    other = Fingerprint(model={"weights": "v", "seed": 0}, cells={"uri": "atlas", "snapshot": 5})
    assert (
        ONE.differences(other) == "obs_columns: ['a'] against None, snapshot: None against 5, weights: 'w' against 'v'"
    )
    assert ONE.differences(ONE) == ""
