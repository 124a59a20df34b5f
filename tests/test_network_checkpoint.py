"""Checkpoints: the three namings are one, and whatever does not fit is named."""

import hashlib
import json
import os

import pytest
import safetensors.torch
import torch

from scgpt_ray.errors import CheckpointError
from scgpt_ray.network.checkpoint import (
    Architecture,
    random_checkpoint,
    random_tensors,
    read_checkpoint,
    write_checkpoint,
)
from scgpt_ray.network.checkpoint_files import read_vocabulary

GENES = [f"G{i}" for i in range(20)]
LAYER = "transformer_encoder.layers.0"


@pytest.fixture
def folder(tmp_path):
    random_checkpoint(tmp_path, GENES, embsize=8, nheads=2, d_hid=12, nlayers=2)
    return tmp_path


def state(folder):
    return torch.load(folder / "best_model.pt", weights_only=True)


def save(folder, tensors):
    torch.save(tensors, folder / "best_model.pt")


def set_args(folder, **changes):
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps({k: v for k, v in (args | changes).items() if v is not ...}))


def refusal(folder):
    with pytest.raises(CheckpointError) as raised:
        read_checkpoint(folder)
    assert "\n" not in str(raised.value)
    return raised.value


def test_reads_what_was_written(folder):
    checkpoint = read_checkpoint(folder)
    assert checkpoint.architecture == Architecture(8, 2, 12, 2, -2, 23)
    assert checkpoint.architecture.n_bins == 51
    assert checkpoint.folder == str(folder)
    assert checkpoint.vocabulary == read_vocabulary(str(folder))
    assert checkpoint.weights_sha256 == hashlib.sha256((folder / "best_model.pt").read_bytes()).hexdigest()
    expected = random_tensors(checkpoint.architecture, seed=0)
    assert list(checkpoint.tensors) == list(expected)
    assert all(torch.equal(checkpoint.tensors[name], expected[name]) for name in expected)


def test_reads_from_a_uri(folder):
    assert read_checkpoint(f"file://{folder}").weights_sha256 == read_checkpoint(folder).weights_sha256


def test_written_files_are_what_other_readers_look_for(folder):
    args = json.loads((folder / "args.json").read_text())
    assert {
        "embsize",
        "nheads",
        "d_hid",
        "nlayers",
        "n_layers_cls",
        "dropout",
        "pad_token",
        "pad_value",
    } <= set(args)
    assert sorted(json.loads((folder / "vocab.json").read_text()).values()) == list(range(23))
    assert f"{LAYER}.self_attn.Wqkv.weight" in state(folder)


def test_random_weights_follow_the_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        random_checkpoint(tmp_path / name, GENES, seed=seed)
    a, b, c = (read_checkpoint(tmp_path / name) for name in "abc")
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert not torch.equal(a.tensors["encoder.embedding.weight"], c.tensors["encoder.embedding.weight"])


@pytest.mark.parametrize(
    ("old", "new"),
    [("self_attn.", "self_attn._impl."), ("self_attn.Wqkv.", "self_attn.in_proj_"), ("none", "none")],
)
def test_three_namings_are_one_checkpoint(folder, old, new):
    expected = read_checkpoint(folder)
    save(folder, {name.replace(old, new): tensor for name, tensor in state(folder).items()})
    found = read_checkpoint(folder)
    assert list(found.tensors) == list(expected.tensors)
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors)


def test_safetensors_in_place_of_a_torch_file(folder):
    expected = read_checkpoint(folder)
    safetensors.torch.save_file(state(folder), folder / "model.safetensors")
    assert "both best_model.pt and model.safetensors" in refusal(folder).found
    (folder / "best_model.pt").unlink()
    found = read_checkpoint(folder)
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4])
    assert "model.safetensors cannot be read" in refusal(folder).found


def test_training_heads_are_not_read(folder):
    heads = (
        "decoder.fc.0.weight",
        "mvc_decoder.W.weight",
        "cls_decoder.out_layer.weight",
        "flag_encoder.weight",
    )
    save(folder, state(folder) | {name: torch.full((177, 8), float("nan")) for name in heads})
    assert not set(heads) & set(read_checkpoint(folder).tensors)


def test_half_precision_weights_become_float32(folder):
    save(folder, {name: tensor.half() for name, tensor in state(folder).items()})
    assert {tensor.dtype for tensor in read_checkpoint(folder).tensors.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["args.json", "vocab.json", "best_model.pt"])
def test_a_missing_file_is_named_beside_the_expected_three(folder, name):
    (folder / name).unlink()
    error = refusal(folder)
    assert f"has no {name}" in error.found
    assert all(expected in error.expected for expected in ("args.json", "vocab.json", "best_model.pt"))


def test_a_folder_that_is_not_there(tmp_path):
    assert "has no args.json and no vocab.json and no best_model.pt" in refusal(tmp_path / "nowhere").found


@pytest.mark.parametrize(
    ("name", "shape", "said", "expected"),
    [
        (f"{LAYER}.linear1.weight", None, f"has no tensor {LAYER}.linear1.weight", "[12, 8]"),
        (f"{LAYER}.norm1.weight", (9,), f"{LAYER}.norm1.weight has the shape [9]", "[8]"),
        (f"{LAYER}.self_attn.Wqkv.weight", (8, 24), "Wqkv.weight has the shape [8, 24]", "[24, 8]"),
        ("encoder.embedding.weight", (23, 9), "encoder.embedding.weight has the shape [23, 9]", "[23, 8]"),
        ("encoder.embedding.weight", (20, 8), "has 20 rows (none for <pad>, <cls>, <eoc>)", "23 rows"),
        ("encoder.embedding.weight", (24, 8), "encoder.embedding.weight has 24 rows;", "23 rows"),
        ("encoder.extra.weight", (2, 3), "encoder.extra.weight [2, 3]", "tensors of the encoder"),
        (f"{LAYER}.self_attn.in_proj_bias", (24,), "self_attn.Wqkv.bias under two names", "tensors of the"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder, name, shape, said, expected):
    tensors = state(folder)
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(shape)
    save(folder, tensors)
    error = refusal(folder)
    assert said in f"{error.found};"
    assert expected in error.expected
    assert "best_model.pt" in error.found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, value):
    tensors = state(folder)
    tensors["value_encoder.norm.bias"][3] = value
    save(folder, tensors)
    assert "value_encoder.norm.bias holds values that are not finite" in refusal(folder).found


def test_integer_weights_are_refused(folder):
    save(folder, state(folder) | {"value_encoder.norm.bias": torch.zeros(8, dtype=torch.int32)})
    assert "torch.int32" in refusal(folder).found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embsize": 16}, "has the shape"),
        ({"d_hid": 8}, f"{LAYER}.linear1.weight has the shape [12, 8]"),
        ({"nlayers": 3}, "has no tensor transformer_encoder.layers.2.self_attn.Wqkv.weight and 11 more"),
        (
            {"nlayers": 1},
            "transformer_encoder.layers.1.self_attn.Wqkv.weight [24, 8], which the encoder has no",
        ),
        ({"nheads": 3}, "embsize 8, which is no multiple of nheads 3"),
        ({"nheads": 0}, "nheads 0"),
        ({"embsize": ...}, "embsize null"),
        ({"d_hid": "12"}, 'd_hid "12"'),
        ({"nlayers": True}, "nlayers true"),
        ({"pad_value": None}, "pad_value null"),
        ({"pad_value": float("nan")}, "pad_value NaN"),
        ({"n_bins": 101}, "n_bins 101 instead of 51"),
        ({"input_emb_style": "category"}, 'input_emb_style "category" instead of "continuous"'),
    ],
)
def test_args_that_contradict_the_weights(folder, changes, said):
    set_args(folder, **changes)
    assert said in refusal(folder).found


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_args_that_are_no_object(folder, content):
    (folder / "args.json").write_text(content)
    assert "args.json is not" in refusal(folder).found


class Code:
    """Unpickles by running a command."""

    def __reduce__(self):
        return os.system, ("echo this must never run",)


def test_a_pickle_that_wants_code_is_refused(folder, capfd):
    save(folder, {"encoder.embedding.weight": Code()})
    error = refusal(folder)
    assert "refused, because loading it would run code (posix.system)" in error.found
    assert "safetensors or a plain state dict" in error.expected
    assert capfd.readouterr().out == ""


def test_a_whole_module_is_refused(folder):
    save(folder, torch.nn.Linear(2, 2))
    assert "would run code (torch.nn.modules.linear.Linear)" in refusal(folder).found


def test_nested_and_foreign_content_is_refused(folder):
    save(folder, {"model": state(folder)})
    assert "holds a dict under 'model'" in refusal(folder).found
    save(folder, [torch.zeros(2)])
    assert "holds a list" in refusal(folder).found


@pytest.mark.parametrize("keep", [0, 1, 10, 100, 0.5, -1])
def test_a_truncated_file_is_refused(folder, keep):
    content = (folder / "best_model.pt").read_bytes()
    (folder / "best_model.pt").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert "best_model.pt cannot be read (" in refusal(folder).found


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\n", b"hello"]
)
def test_a_file_that_never_was_a_torch_file_is_refused(folder, content):
    (folder / "best_model.pt").write_bytes(content)
    assert "best_model.pt cannot be read (" in refusal(folder).found


def test_writing_accounts_for_every_tensor(folder, tmp_path):
    checkpoint = read_checkpoint(folder)
    tensors = dict(checkpoint.tensors)
    del tensors["value_encoder.norm.bias"]
    with pytest.raises(CheckpointError, match=r"has no tensor value_encoder\.norm\.bias"):
        write_checkpoint(tmp_path / "copy", checkpoint.architecture, checkpoint.vocabulary, tensors)
    assert not (tmp_path / "copy").exists()


@pytest.mark.golden
@pytest.mark.parametrize("name", ["flash_names", "torch_names", "cp_classes"])
def test_golden_checkpoints(shared, name):
    folder = shared / "golden" / name / "checkpoint"
    checkpoint = read_checkpoint(folder)
    assert checkpoint.vocabulary.size == checkpoint.architecture.n_tokens == 3003
    assert all(name.startswith(("encoder.", "value_encoder.", "transformer_encoder.")) for name in checkpoint.tensors)
