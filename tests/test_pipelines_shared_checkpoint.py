"""A checkpoint for workers on other machines: the same content from the output folder."""

from contextlib import nullcontext

import numpy as np
import pytest

from scgpt_ray.config import EmbedSettings
from scgpt_ray.errors import CheckpointError
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.network.checkpoint import read_checkpoint
from scgpt_ray.network.checkpoint_files import CheckpointFiles
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.pipelines.embed import embed
from scgpt_ray.pipelines.shared_checkpoint import share
from scgpt_ray.storage import Folder


class Elsewhere(SerialExecutor):
    """Does the work of other machines in this process."""

    is_here = False


class Engine:
    """Opens the given executor."""

    def __init__(self, executor):
        self.executor = executor

    def gpus(self):
        return 0

    def open(self, *_arguments, **_options):
        return nullcontext(self.executor)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCGPT_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_all_machines_have_is_not_copied(checkpoint, tmp_path):
    place = Folder.at(tmp_path / "out")
    here, demo = read_checkpoint(checkpoint).files, read_checkpoint("demo").files
    remote = read_checkpoint(f"file://{checkpoint}").files
    assert share(here, place, SerialExecutor()) is here
    assert share(demo, place, Elsewhere()) is demo
    assert share(remote, place, Elsewhere()) is remote
    assert not (tmp_path / "out").exists()


def test_a_copy_is_made_once_and_checked(checkpoint, tmp_path, cache):
    (tmp_path / "out").mkdir()
    place = Folder.at(f"file://{tmp_path}/out")
    files = read_checkpoint(checkpoint).files
    shared = share(files, place, Elsewhere())
    assert shared == CheckpointFiles(place.uri, files.sha256)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert sorted(times) == ["args.json", "best_model.pt", "vocab.json"]
    assert share(files, place, Elsewhere()) == shared
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    weights = tmp_path / "out" / "best_model.pt"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"best_model\.pt has the sha256 .*; expected [0-9a-f]{64}"):
        read_checkpoint(shared)
    weights.write_bytes(content)
    read_checkpoint(shared)
    weights.write_bytes(content[:-1] + b"x")  # machines that have it, read their own copy
    assert read_checkpoint(shared).weights_sha256 == dict(files.sha256)["best_model.pt"]
    assert {path.name for path in (cache / "sha256").iterdir() if path.suffix != ".lock"} == set(
        dict(shared.sha256).values()
    )


def test_workers_elsewhere_give_the_same_embeddings(blood_file, checkpoint, tmp_path, cache):
    vectors = []
    for executor, output in ((SerialExecutor(), tmp_path / "here"), (Elsewhere(), f"file://{tmp_path}/elsewhere")):
        (tmp_path / "elsewhere" / "parts").mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere" / "checkpoint").mkdir(exist_ok=True)
        settings = EmbedSettings(atlas=str(blood_file), checkpoint=str(checkpoint), output=str(output))
        embed(settings, Engine(executor))
        vectors.append(vectors_of(read_embeddings(Folder.at(output)))[1])
    assert np.array_equal(*vectors)
    assert sorted(path.name for path in (tmp_path / "elsewhere" / "checkpoint").iterdir()) == [
        "args.json", "best_model.pt", "vocab.json",
    ]  # fmt: skip
    assert not (tmp_path / "here" / "checkpoint").exists()
    assert len([path for path in (cache / "sha256").iterdir() if path.suffix != ".lock"]) == 3
