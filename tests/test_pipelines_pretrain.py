"""Training, from cells to a checkpoint folder: what is left, going on, killed workers and drivers, several workers."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

import scgpt_ray
from scgpt_ray.cli import DONE, main
from scgpt_ray.config import PretrainSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.execution.engine import LocalOrRay
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.network.checkpoint import read_checkpoint
from scgpt_ray.network.embedder import Embedder
from scgpt_ray.pipelines.pretrain import on_gpus, pretrain
from scgpt_ray.tokenizer.vocabulary import SPECIALS
from scgpt_ray.training.state import STATE
from tests.forked import Forked, still_alive

pytestmark = pytest.mark.timeout(1200)

SIZE = {"embsize": 16, "nheads": 2, "d_hid": 16, "nlayers": 2}
STEPS = {"steps": 60, "warmup_steps": 5, "steps_per_checkpoint": 10, "cells_per_step": 32, "learning_rate": 0.003}
COMMON = {**STEPS, "cells_per_partition": 100, "validation_share": 0.2}
GENERATIVE = {**SIZE, **COMMON, "dropout": 0.0}
LIMIT_S = 600


@pytest.fixture(scope="module")
def train(blood_file, tmp_path_factory):
    """Trains on the synthetic cells: train(name, option=value, ...) -> (folder, Trained)."""
    place = tmp_path_factory.mktemp("pretrain")

    def run(name, executor="serial", **options):
        asked = PretrainSettings.of({"atlas": [str(blood_file)], "output": str(place / name), **options})
        return place / name, pretrain(asked, LocalOrRay(executor))

    return run


@pytest.fixture(scope="module")
def generative(train):
    return train("generative", **GENERATIVE)


@pytest.fixture(scope="module")
def supervised(train, generative):
    """Goes on with cell types, and hides the donor."""
    folder, _ = generative
    options = {"label_column": "cell_type", "domain_column": "donor", "dropout": 0.1, "label_weight": 400.0}
    options |= {"domain_weight": 20.0, "objective": "masked"}
    return train("supervised", checkpoint=str(folder / "checkpoint"), **COMMON, **options)


def assert_evaluated_alike(ours, theirs, tolerance):
    assert len(ours) == len(theirs) == 4
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=tolerance)


def wait_for(what, limit_s=LIMIT_S):
    """Poll until it is something, which is returned; None when the time is over."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.005)
    return None


def has_saved(folder):
    """Whether a state is saved and known to be."""
    return (folder / STATE).exists()


def test_what_is_left(generative):
    folder, trained = generative
    assert {path.name for path in folder.iterdir() if not path.name.startswith("ml")} == {
        "checkpoint",
        "curve.png",
        "losses.parquet",
        "metrics.json",
        "report.html",
        "request.json",
        "safetensors",
        "tokens",
        "training",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == trained.metrics
    assert metrics["n_cells"] + metrics["n_validation"] == 258  # two of 260 are empty
    assert 25 < metrics["n_validation"] < 80
    assert [evaluated["step"] for evaluated in metrics["validations"]] == [10, 20, 30, 40, 50, 60]
    assert metrics["best"] == min(reversed(metrics["validations"]), key=lambda evaluated: evaluated["loss"])
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    page = " ".join((folder / "report.html").read_text().split())
    best = metrics["best"]
    for text in (
        f"60 steps on {metrics['n_cells']} cells. The checkpoint is that of step {best['step']}, with",
        f'<tr class="chosen"><td>{best["step"]}</td><td>{best["loss"]:.4g}</td>',
        "random weights",
    ):
        assert text in page
    assert page.count("<svg") == len(best) - 1, "one of each metric"
    assert ">training<" in page, "in the legend of the loss"
    losses = pq.read_table(folder / "losses.parquet")
    assert losses["step"].to_pylist() == list(range(1, 61))
    tokens = pq.read_table(folder / "tokens" / "atlas-0" / "part-00001.parquet")  # as a user would
    assert tokens.column_names == ["soma_joinid", "obs_id", "n_genes", "content_digest", "gene", "bin"]
    assert f"checkpoint  {folder}/checkpoint" in trained.text()


def test_the_loss_falls(generative):
    folder, trained = generative
    first, *_, last = trained.metrics["validations"]
    losses = pq.read_table(folder / "losses.parquet")["loss"].to_pylist()
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert set(first) == {"step", "loss", "value", "cell", "prompt"}
    for name in ("loss", "value", "cell", "prompt"):
        assert last[name] < 0.8 * first[name]


@pytest.mark.parametrize("name", ["checkpoint", "safetensors"])
def test_the_checkpoint_is_one(generative, blood_file, name):
    folder, trained = generative
    checkpoint = read_checkpoint(folder / name)
    genes = [gene for gene in checkpoint.vocabulary.tokens if gene not in SPECIALS]
    assert len(genes) == 64
    assert {head.split(".")[0] for head in checkpoint.heads} == {"decoder", "mvc_decoder", "flag_encoder"}
    n_parameters = sum(
        tensor.numel() for tensors in (checkpoint.tensors, checkpoint.heads) for tensor in tensors.values()
    )
    assert trained.metrics["n_parameters"] == n_parameters
    assert Embedder(checkpoint).describe()["precision"] == "float32"
    args = json.loads((folder / name / "args.json").read_text())
    assert (args["mask_ratio"], args["mask_value"], args["MVC"], args["no_cls"]) == ([0.25, 0.5, 0.75], -1, True, True)
    assert args["training_tasks"] == "both"


def test_cells_are_embedded_with_it(generative, blood_file, tmp_path):
    folder, _ = generative
    manifest = scgpt_ray.embed(
        executor="serial",
        atlas=str(blood_file),
        checkpoint=str(folder / "checkpoint"),
        output=str(tmp_path / "out"),
        obs_filter="donor == 'd1'",
    )
    assert (manifest.n_cells, manifest.dimension) == (173, 16)


def test_the_same_command_again_does_nothing(train, generative):
    folder, trained = generative
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    _, again = train("generative", **GENERATIVE)
    assert again.metrics == trained.metrics
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_going_on_with_labels(supervised):
    """The head of the cell types is there under its published names, and trained; the adversary is not."""
    folder, trained = supervised
    first, *_, last = trained.metrics["validations"]
    assert set(first) == {"step", "loss", "value", "cell", "label", "domain", "label_accuracy", "label_asw"}
    assert last["label_accuracy"] > 0.8
    assert last["label"] < 0.7 * first["label"]
    heads = read_checkpoint(folder / "checkpoint").heads
    assert {name.split(".")[0] for name in heads} == {"decoder", "mvc_decoder", "cls_decoder", "flag_encoder"}
    assert tuple(heads["cls_decoder.out_layer.weight"].shape) == (3, 16)
    args = json.loads((folder / "checkpoint" / "args.json").read_text())
    assert args["cell_types"] == trained.metrics["labels"] == ["B", "NK", "T"]
    assert args["training_sets"] == ["blood"]
    assert args["no_cls"] is False
    assert args["training_tasks"] == "pcpt"


def test_going_on_begins_where_the_checkpoint_is(generative, supervised):
    """What the generative run had learnt is not lost."""
    assert supervised[1].metrics["validations"][0]["value"] < 0.9 * generative[1].metrics["validations"][0]["value"]


def test_too_many_workers_are_refused():
    with pytest.raises(ConfigError, match=r"--workers 999 on a cluster of \d+ [CG]PUs; .*; lower --workers"):
        on_gpus(999, SerialExecutor())


@pytest.mark.slow
def test_a_killed_driver_resumes_to_the_same_losses(train, blood_file, tmp_path, capsys, caplog):
    """kill -9 of the program after the first saving; the same command then does what is left."""
    folder, options = tmp_path / "out", GENERATIVE | {"steps": 40}
    other, whole = train("whole", **options)
    command = ["pretrain", "--atlas", str(blood_file), "--output", str(folder), "--executor", "serial"]
    for name, value in options.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    driver = Forked(command, tmp_path)
    driver.until(lambda: has_saved(folder))
    below = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    for process in below:
        if process.is_running():
            process.kill()
    still_alive(below, 60)
    assert not (folder / "metrics.json").exists()
    parts = {path: path.stat().st_mtime_ns for path in Path(folder / "tokens").rglob("part-*")}
    caplog.clear()
    caplog.set_level("INFO")
    assert main(command) == DONE
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["verb"], told["steps"]) == ("pretrain", 40)
    assert "step 10:" not in caplog.text  # it was there
    assert "step 40:" in caplog.text
    assert "Traceback" not in caplog.text
    assert {path: path.stat().st_mtime_ns for path in Path(folder / "tokens").rglob("part-*")} == parts
    evaluated = json.loads((folder / "metrics.json").read_text())["validations"]
    assert_evaluated_alike(evaluated, whole.metrics["validations"], 1e-6)
    resumed, undisturbed = (pq.read_table(place / "losses.parquet") for place in (folder, other))
    assert resumed["step"].to_pylist() == list(range(1, 41))
    assert resumed["loss"].to_pylist() == pytest.approx(undisturbed["loss"].to_pylist(), rel=1e-6)
