"""A training run on one worker: where it begins, what it keeps, how it goes on."""

import io
import logging
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from scgpt_ray.atlas.plan import cut
from scgpt_ray.config import PretrainSettings
from scgpt_ray.errors import WorkerError
from scgpt_ray.network.cell_spans import Spans
from scgpt_ray.network.checkpoint import Architecture, random_tensors, read_checkpoint, write_checkpoint
from scgpt_ray.parts.token_file import write_tokens
from scgpt_ray.schema import BIN, GENE, JOINID
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.vocabulary import Vocabulary
from scgpt_ray.training import loop as run
from scgpt_ray.training.dataset import AtlasTokens, Cells
from scgpt_ray.training.label_metrics import label_metrics
from scgpt_ray.training.loop import Training, _batches, begin, fit, weights_of
from scgpt_ray.training.network import ScGPT

CPU = torch.device("cpu")
VOCABULARY = Vocabulary({f"G{number}": number for number in range(30)})
ARCHITECTURE = Architecture(16, 2, 16, 2, -2, VOCABULARY.size)
LABELS = ("B", "T")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """More only wait for each other at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Alone:
    """Carries a run in this process, and remembers what it was given."""

    def __init__(self, rank=0, workers=1):
        self.rank, self.workers = rank, workers
        self.steps, self.losses, self.states, self.evaluated = [], [], [], []

    def step_done(self, step, metrics):
        assert math.isfinite(metrics["gradient_norm"])
        self.steps.append(step)
        self.losses.append(metrics["loss"])

    def save(self, state, metrics):
        self.states.append(through_a_file(state))
        self.evaluated.append(metrics)


def through_a_file(state):
    """What comes back of a state that was saved and is loaded without running code."""
    content = io.BytesIO()
    torch.save(state, content)
    content.seek(0)
    return torch.load(content, weights_only=True)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """40 cells, 10 of them kept out."""
    random = np.random.default_rng(0)
    genes = [np.append(VOCABULARY.cls_token, random.permutation(30)[: random.integers(3, 25)]) for _ in range(40)]
    tokens = pa.table({
        JOINID: np.arange(40),
        "type": [LABELS[number // 4 % 2] for number in range(40)],
        "donor": ["d1" if number % 3 else "d2" for number in range(40)],
        GENE: pa.array(genes, pa.list_(pa.uint16())),
        BIN: pa.array([np.append(0, random.integers(1, 51, len(gene) - 1)) for gene in genes], pa.list_(pa.uint8())),
    })  # fmt: skip
    folder = Folder.at(tmp_path_factory.mktemp("tokens"))
    named = {"label_column": "type", "domain_column": "donor"}
    (partition,) = cut(np.arange(40), 100)
    return AtlasTokens(
        folder, (write_tokens(folder, tokens, partition, np.arange(40) % 4 == 0, fingerprint="f", **named),)
    )


def training(atlas, *, labels=(), domains=(), **more):
    cells, validation = (
        Cells((atlas,), out, labels, domains, "type" if labels else None, "donor" if domains else None, 0)
        for out in (False, True)
    )
    asked = {
        "dropout": 0.1, "steps": 7, "learning_rate": 1e-3, "warmup_steps": 1, "label_weight": 100, "domain_weight": 10,
        "min_length": 5, "max_length": 20, "mask_ratios": (0.5,), "cells_per_step": 8, "steps_per_checkpoint": 3,
        "atlas": ["a"], "output": "o",
    }  # fmt: skip
    own = {name: more.pop(name) for name in ("checkpoint", "tokens_per_microbatch") if name in more}
    plain = Training(PretrainSettings(**asked), ARCHITECTURE, None, cells, validation, 100)
    return with_settings(replace(plain, **own), **more)


def with_settings(asked, **more):
    return replace(asked, settings=asked.settings.model_copy(update=more))


def checkpoint_with(folder, cell_types, **more):
    """A checkpoint with the heads of a network, and other tensors beside it."""
    torch.manual_seed(5)
    network = ScGPT(ARCHITECTURE, dropout=0.0, n_labels=len(cell_types))
    tensors = {**network.state_dict(), **random_tensors(ARCHITECTURE, 3), **more}
    write_checkpoint(folder, ARCHITECTURE, VOCABULARY, tensors, more_args={"cell_types": list(cell_types)})
    return tensors


def test_attention_has_the_same_dropout_by_default(atlas):
    for more, expected in (({}, 0.1), ({"attention_dropout": 0.05}, 0.05), ({"attention_dropout": 0.0}, 0.0)):
        transformer = begin(training(atlas, **more), CPU).network.transformer_encoder
        assert [layer.self_attn.dropout for layer in transformer.layers] == [expected] * ARCHITECTURE.nlayers


def test_cells_are_cut_to_one_length_unless_a_shortest_is_given(atlas):
    def lengths(min_length):
        asked = training(atlas, max_length=8, min_length=min_length)
        return [np.diff(each.cells.offsets).tolist() for each in _batches(asked, asked.cells, 1, 8, Alone(), CPU)]

    assert lengths(None) == lengths(8) != lengths(3)


def test_it_saves_now_and_then_and_at_the_end(atlas):
    host = Alone()
    fit(training(atlas), CPU, host, None)
    assert host.steps == [1, 2, 3, 4, 5, 6, 7]
    assert [told["step"] for told in host.evaluated] == [3, 6, 7]
    assert [state["learner"]["step"] for state in host.states] == [3, 6, 7]
    assert host.states[-1]["kept"]["validations"] == host.evaluated
    assert [state["kept"]["losses"] for state in host.states] == [host.losses[:3], host.losses[:6], host.losses]
    assert set(host.evaluated[0]) == {"step", "loss", "value", "cell", "prompt"}


def test_any_saved_state_leads_to_the_same_end(atlas):
    asked = training(atlas, labels=LABELS, domains=("d1", "d2"))
    undisturbed = Alone()
    fit(asked, CPU, undisturbed, None)
    for number, state in enumerate(undisturbed.states[:-1]):
        resumed = Alone()
        fit(asked, CPU, resumed, state)
        assert resumed.steps == undisturbed.steps[state["learner"]["step"] :]
        assert resumed.evaluated == undisturbed.evaluated[number + 1 :]
        assert resumed.states[-1]["kept"]["validations"] == undisturbed.evaluated
        assert resumed.states[-1]["kept"]["losses"] == undisturbed.losses, "each step once, also those done again"
        for name, weight in undisturbed.states[-1]["kept"]["best"].items():
            assert torch.equal(resumed.states[-1]["kept"]["best"][name], weight)


def test_a_finished_run_has_nothing_left(atlas):
    first, again = Alone(), Alone()
    fit(training(atlas), CPU, first, None)
    fit(training(atlas), CPU, again, first.states[-1])
    assert again.steps == again.evaluated == []


def test_the_best_weights_have_the_lowest_evaluated_loss(atlas):
    """A learning rate that is far too high makes the run worse than it was."""
    host = Alone()
    asked = training(atlas, steps=3, learning_rate=0.3, steps_per_checkpoint=1)
    fit(asked, CPU, host, None)
    losses = [told["loss"] for told in host.evaluated]
    best = losses.index(min(losses))
    assert best < len(losses) - 1
    kept = host.states[-1]["kept"]
    assert kept["best_validation"] == host.evaluated[best]
    for name, weight in kept["best"].items():
        assert torch.equal(weight, host.states[best]["learner"]["network"][name])


@pytest.mark.parametrize("best_by", ["label_accuracy", "label_asw", "last"])
def test_the_best_weights_by_choice(atlas, best_by):
    host = Alone()
    schedule = {"steps": 8, "learning_rate": 0.03, "steps_per_checkpoint": 1}
    fit(training(atlas, labels=LABELS, **schedule, best_by=best_by), CPU, host, None)
    found = [told[best_by] if best_by != "last" else told["step"] for told in host.evaluated]
    best = max(number for number, value in enumerate(found) if value == max(found))
    kept = host.states[-1]["kept"]
    assert kept["best_validation"] == host.evaluated[best]
    for name, weight in kept["best"].items():
        assert torch.equal(weight, host.states[best]["learner"]["network"][name])


def test_label_metrics_are_those_of_whole_cells(atlas):
    """As the network embeds them when it is evaluated, whatever the budget of a microbatch or the objective."""
    asked = training(atlas, labels=LABELS, max_length=40, cells_per_step=4)
    learner = begin(asked, CPU)
    others = replace(asked, tokens_per_microbatch=1), with_settings(asked, objective="masked")
    found = [run._validate(each, learner, Alone(), CPU) for each in (asked, *others)]
    learner.network.eval()
    cells = [cell for step in (0, 1) for _, cell in asked.validation.of_step(step, 4, 0, 1)]
    vectors = []
    for cell in cells:
        values = torch.from_numpy(cell.bin.astype(np.float32))
        values[0] = ARCHITECTURE.pad_value
        with torch.no_grad():
            x_TD, _ = learner.network(
                torch.from_numpy(cell.gene.astype(np.int64)), values, Spans.of(np.array([0, len(values)]), CPU)
            )
        vectors.append(torch.nn.functional.normalize(x_TD[0], dim=0).numpy())
    codes = np.array([cell.label for cell in cells])
    expected = label_metrics(np.stack(vectors), codes)
    assert set(expected) == {"label_accuracy", "label_asw"}
    for one in found:
        assert {name: one[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_labels_that_only_measure(atlas):
    """Without a weight there is no head, and the loss has no part of it."""
    host = Alone()
    fit(training(atlas, labels=LABELS, label_weight=0, domain_weight=0), CPU, host, None)
    assert set(host.evaluated[0]) == {"step", "loss", "value", "cell", "prompt", "label_accuracy", "label_asw"}
    assert not any(name.startswith("cls_decoder") for name in host.states[-1]["kept"]["best"])


def test_a_metric_that_is_not_defined_cannot_choose(atlas):
    """The validation cells have a single label among those of the training cells."""
    asked = training(atlas, labels=LABELS, best_by="label_asw")
    only = replace(asked.validation)
    object.__setattr__(only, "type_weights", np.array([[1.0, 0.0]], np.float32))
    with pytest.raises(WorkerError, match=r"label_asw of the validation cells is not defined: .*; give --best-by loss"):
        fit(replace(asked, validation=only), CPU, Alone(), None)


def test_only_the_first_worker_has_the_state(atlas):
    host = Alone(rank=1, workers=2)
    fit(training(atlas), CPU, host, None)
    assert host.states == [None] * 3


@pytest.mark.parametrize(("most", "n_evaluated"), [(4, 4), (10, 8), (2048, 8)])
def test_it_is_evaluated_by_whole_steps_of_cells(atlas, monkeypatch, most, n_evaluated):
    """Also where a step has more cells than a run is evaluated by."""
    monkeypatch.setattr(run, "VALIDATION_CELLS", most)
    batches = list(run._validation_batches(training(atlas), Alone(), CPU))
    assert sum(len(batch.atlas_C) for _, batch in batches) == n_evaluated
    assert {int(batch.masked_M.numel() > 0) for _, batch in batches} == {1}
    places = sorted(first + place for first, batch in batches for place in batch.place_C.tolist())
    assert places == list(range(n_evaluated))


def test_validation_sees_the_same_masks_each_time(atlas):
    first, second = (list(run._validation_batches(training(atlas), Alone(), CPU)) for _ in range(2))
    for (_, one), (_, other) in zip(first, second, strict=True):
        assert torch.equal(one.value_T, other.value_T)


def test_fresh_weights_follow_from_the_seed(atlas):
    networks = [begin(training(atlas, seed=seed), CPU).network.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert not torch.equal(networks[0]["encoder.embedding.weight"], networks[2]["encoder.embedding.weight"])


def test_it_begins_with_the_encoder_and_heads_of_a_checkpoint(atlas, tmp_path):
    tensors = checkpoint_with(tmp_path, LABELS)
    found = begin(training(atlas, labels=LABELS, checkpoint=str(tmp_path)), CPU).network.state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("cell_types", "labels", "more", "anew"),
    [
        (("B", "NK", "T"), LABELS, {}, {"cls_decoder"}),
        (("B", "NK"), LABELS, {}, {"cls_decoder"}),
        ((), LABELS, {}, {"cls_decoder"}),
        (("B", "NK", "T"), (), {}, set()),
        (LABELS, LABELS, {"mvc_decoder.W.weight": torch.zeros(16, 32)}, {"mvc_decoder"}),
        (LABELS, LABELS, {"flag_encoder.weight": torch.zeros(2, 16)}, set()),
        (LABELS, LABELS, {"flag_encoder.weight": torch.zeros(2, 8)}, {"flag_encoder"}),
    ],
    ids=[
        "more classes",
        "as many others",
        "no classes",
        "no labels now",
        "a head with batch labels",
        "flags",
        "flags of another width",
    ],
)
def test_heads_that_do_not_fit_begin_anew_and_are_named(atlas, tmp_path, caplog, cell_types, labels, more, anew):
    tensors = checkpoint_with(tmp_path, cell_types, **more)
    with caplog.at_level(logging.INFO):
        found = begin(training(atlas, labels=labels, checkpoint=str(tmp_path)), CPU).network.state_dict()
    assert {record.message.split()[0] for record in caplog.records if "initialised at random" in record.message} == anew
    for name, tensor in found.items():
        fits = name in tensors and name.split(".")[0] not in anew
        assert torch.equal(tensor, tensors[name]) if fits else torch.isfinite(tensor).all()
    fresh = begin(training(atlas, labels=labels), CPU).network.state_dict()
    for name in found:
        if name.split(".")[0] in anew:
            assert torch.equal(found[name], fresh[name])


def test_flags_are_missed_where_they_are_used(atlas, tmp_path, caplog):
    """The masked objective has no use for them, and keeps those that it finds."""
    tensors = checkpoint_with(tmp_path / "whole", LABELS)
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("flag_encoder.")}
    write_checkpoint(tmp_path / "without", ARCHITECTURE, VOCABULARY, without, more_args={"cell_types": list(LABELS)})
    for objective, told in (("generative", 1), ("masked", 0)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            begin(training(atlas, labels=LABELS, checkpoint=str(tmp_path / "without"), objective=objective), CPU)
        assert sum("flag_encoder" in record.message for record in caplog.records) == told
    masked = begin(training(atlas, labels=LABELS, checkpoint=str(tmp_path / "whole"), objective="masked"), CPU)
    assert torch.equal(masked.network.flag_encoder.weight, tensors["flag_encoder.weight"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"objective": "masked", "attention_dropout": 0.0}, False),
        ({"objective": "generative", "attention_dropout": 0.0}, True),
        ({"objective": "masked"}, True),
        ({"objective": "generative", "precision": "float32"}, False),
    ],
)
def test_a_gpu_says_why_it_does_without_the_varlen_kernel(atlas, caplog, monkeypatch, more, says):
    """Once a run, and only where the kernel would have been used."""
    monkeypatch.setattr(ScGPT, "to", lambda network, _device: network)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: None)
    with caplog.at_level(logging.INFO):
        begin(training(atlas, **{"precision": "bfloat16", **more}), torch.device("cuda"))
    assert sum("varlen" in record.message for record in caplog.records) == says


@pytest.mark.parametrize(
    ("embeddings", "layers", "kept"),
    [
        (False, 0, ()),
        (True, 0, ("encoder.", "value_encoder.")),
        (False, 1, ("transformer_encoder.layers.0.",)),
        (True, 2, ("encoder.", "value_encoder.", "transformer_encoder.")),
    ],
)
def test_frozen_weights_stay_and_all_others_move(atlas, tmp_path, embeddings, layers, kept):
    tensors = checkpoint_with(tmp_path, LABELS)
    host = Alone()
    frozen = {"freeze_embeddings": embeddings, "freeze_layers": layers, "checkpoint": str(tmp_path)}
    asked = training(atlas, labels=LABELS, **frozen)
    fit(asked, CPU, host, None)
    trained = host.states[-1]["learner"]["network"]
    moved = {name for name, tensor in tensors.items() if not torch.equal(trained[name], tensor)}
    assert moved == {name for name in tensors if not name.startswith(kept)}
    resumed = Alone()
    fit(asked, CPU, resumed, host.states[0])  # the optimiser's state fits as well
    assert resumed.evaluated == host.evaluated[1:]


def test_the_adversary_is_no_part_of_a_checkpoint(atlas):
    network = begin(training(atlas, labels=LABELS, domains=("d1", "d2")), CPU).network
    found = weights_of(network)
    left = {name for name in network.state_dict() if name not in found}
    assert left
    assert {name.split(".")[0] for name in left} == {"grad_reverse_discriminator"}
    name = "encoder.embedding.weight"
    with torch.no_grad():
        network.encoder.embedding.weight.add_(1)
    assert not torch.equal(found[name], network.state_dict()[name])  # copies


def test_what_is_kept_is_a_checkpoint(atlas, tmp_path):
    host = Alone()
    fit(training(atlas, labels=LABELS, domains=("d1", "d2")), CPU, host, None)
    write_checkpoint(tmp_path, ARCHITECTURE, VOCABULARY, host.states[-1]["kept"]["best"])
    found = read_checkpoint(tmp_path)
    assert {name.split(".")[0] for name in found.heads} == {"decoder", "mvc_decoder", "cls_decoder", "flag_encoder"}
