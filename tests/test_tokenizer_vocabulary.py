"""Vocabulary: numbering, special tokens, and refusals."""

import json
import pickle

import numpy as np
import pytest

from scgpt_ray.errors import CheckpointError
from scgpt_ray.tokenizer.vocabulary import CLS, EOC, PAD, Vocabulary


def test_special_tokens_keep_their_place_or_are_appended_in_order():
    given = Vocabulary.from_json(b'{"A": 0, "<cls>": 1, "B": 2}', "vocab.json")
    assert dict(given.tokens) == {"A": 0, CLS: 1, "B": 2, PAD: 3, EOC: 4}
    assert (given.size, given.cls_token) == (5, 1)


def test_gene_dtype_is_the_narrowest_that_holds_every_token():
    assert Vocabulary({f"G{i}": i for i in range(2**16 - 3)}).gene_dtype is np.uint16
    assert Vocabulary({f"G{i}": i for i in range(2**16 - 2)}).gene_dtype is np.int32


def test_sha256_depends_on_the_numbering_alone():
    tokens = {"A": 0, "B": 1, "C": 2}
    spaced = json.dumps(tokens, indent=4).encode()
    reordered = json.dumps(dict(reversed(tokens.items()))).encode()
    same = {Vocabulary.from_json(content, "v").sha256 for content in (spaced, reordered)}
    assert same == {Vocabulary(tokens).sha256}
    assert Vocabulary({"B": 0, "A": 1, "C": 2}).sha256 not in same


def test_pickles():
    vocabulary = Vocabulary({"A": 0})
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not json", "is not JSON"),
        (b"\xff\xfe\xfa", "is not JSON"),
        (b"[0, 1]", "is not a JSON object"),
        (b'"A"', "is not a JSON object"),
        (b'{"A": 0, "B": 0}', "token 0 to both 'A' and 'B'"),
        (b'{"A": 0, "B": 2}', "'B' the token 2, but has 2 names"),
        (b'{"A": -1, "B": 0}', "'A' the token -1"),
        (b'{"A": 0, "A": 1}', "the name 'A' twice"),
        (b'{"A": 0.0}', "'A' the token 0.0"),
        (b'{"A": 0, "B": true}', "'B' the token True"),
        (b'{"A": "0"}', "'A' the token '0'"),
    ],
)
def test_refuses_what_is_no_numbering(content, said):
    with pytest.raises(CheckpointError) as raised:
        Vocabulary.from_json(content, "there/vocab.json")
    assert said in raised.value.found
    assert "there/vocab.json" in raised.value.found
