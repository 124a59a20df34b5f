"""Checkpoints by name, from a hub and a bucket on loopback: what is downloaded when, and what is refused."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scgpt_ray.cli import BAD_INPUT, main
from scgpt_ray.errors import CheckpointError
from scgpt_ray.network.checkpoint import random_checkpoint, read_checkpoint
from scgpt_ray.network.checkpoint_cache import cache_folder, cached, local_copy
from scgpt_ray.network.checkpoint_files import CheckpointFiles
from scgpt_ray.network.published import PUBLISHED, Known
from scgpt_ray.storage import Folder

NAMES = ("args.json", "vocab.json", "best_model.pt")
REPO = "wanglab/scGPT-human"
NO_HUB = "http://127.0.0.1:9"
HANGS_AFTER = 11 * 2**20
"""The hub's library writes pieces of 10 MiB."""


def sums(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NAMES}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    script = Path(__file__).with_name("hub_server.py")
    with subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True) as process:
        yield folder, f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """A hub and a bucket that both have a checkpoint of 1 MB, under the name whole-human and its known sums."""
    folder, url = server
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    branch = folder / "hub" / REPO / "main"
    random_checkpoint(branch, [f"G{number}" for number in range(2000)], embsize=96, nheads=2, d_hid=96, nlayers=1)
    shutil.copytree(branch, folder / "s3" / "public" / "scgpt")
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("SCGPT_RAY_PUBLIC_ENDPOINT", url)
    monkeypatch.setenv("SCGPT_RAY_CACHE", str(tmp_path / "cache"))
    table = {name: Known(digest) for name, digest in sums(branch).items()}

    def publish(*sources, **changes):
        known = replace(PUBLISHED["whole-human"], sources=sources, files={**table, **changes})
        monkeypatch.setitem(PUBLISHED, "whole-human", known)

    def requests(method="GET"):
        log = folder / "log.jsonl"
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [each for each in entries if each["method"] == method and "/api/" not in each["path"]]

    publish(f"hf://{REPO}")
    return SimpleNamespace(folder=folder, branch=branch, publish=publish, requests=requests, cache=tmp_path / "cache")


def refusal(name):
    with pytest.raises(CheckpointError) as raised:
        read_checkpoint(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def faults(hub, **by_name):
    (hub.folder / "faults.json").write_text(json.dumps(by_name))


def test_a_name_is_downloaded_once(hub):
    found = read_checkpoint("whole-human")
    assert found.folder == str(hub.cache / "whole-human")
    assert dict(found.files.sha256) == sums(hub.branch) == sums(hub.cache / "whole-human")
    n_requests = len(hub.requests("HEAD")) + len(hub.requests())
    again = read_checkpoint("whole-human")
    assert again.files == found.files
    assert len(hub.requests("HEAD")) + len(hub.requests()) == n_requests
    assert [path.name for path in sorted((hub.cache / "whole-human").iterdir())] == sorted((*NAMES, "pinned.json"))


def test_the_place_of_the_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("SCGPT_RAY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/scgpt_ray")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_folder() == Path("/scratch/scgpt_ray")
    monkeypatch.setenv("SCGPT_RAY_CACHE", "~/here")
    assert cache_folder() == Path("/home/someone/here")


def test_a_token_stays_with_the_hub(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    cached("whole-human")
    sent = {entry["path"].split("/")[1]: entry["authorization"] for entry in hub.requests()}
    assert sent == {"wanglab": "Bearer hf_test", "stored": None}


def test_a_public_bucket_is_read_without_keys(hub, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    hub.publish("s3://public/scgpt")
    assert read_checkpoint("whole-human").weights_sha256 == sums(hub.branch)["best_model.pt"]
    assert {entry["path"] for entry in hub.requests()} == {f"/public/scgpt/{name}" for name in NAMES}
    assert {entry["authorization"] for entry in hub.requests()} == {None}


def test_the_next_source_is_taken_where_one_fails(hub, caplog):
    hub.publish("hf://no/body", "hf://wanglab/scGPT-human@other", f"file://{hub.folder}/s3/public/scgpt")
    with caplog.at_level("WARNING"):
        assert cached("whole-human")[1] == sums(hub.branch)
    warned = [record.message for record in caplog.records if record.name.startswith("scgpt_ray")]
    assert [line.split()[1] for line in warned] == ["hf://no/body", "hf://wanglab/scGPT-human@other"]


def test_an_unknown_sum_is_pinned_by_the_first_download(hub, caplog):
    hub.publish(f"hf://{REPO}", **{"args.json": Known(), "best_model.pt": Known()})
    with caplog.at_level("INFO"):
        read_checkpoint("whole-human")
    assert "whole-human: args.json best_model.pt trusted, as no sha256 is known, and pinned in" in caplog.text
    pins = json.loads((hub.cache / "whole-human" / "pinned.json").read_text())
    assert {name: pin["sha256"] for name, pin in pins["files"].items()} == sums(hub.branch)
    assert pins["source"] == f"hf://{REPO}"
    weights = hub.cache / "whole-human" / "best_model.pt"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "best_model.pt has sha256" in refusal("whole-human")


@pytest.mark.parametrize("expected", [Known("0" * 64), Known(size=7)])
def test_wrong_content_is_refused(hub, expected):
    hub.publish(f"hf://{REPO}", **{"best_model.pt": expected})
    line = refusal("whole-human")
    assert sums(hub.branch)["best_model.pt"] in line or "bytes, not 7 bytes" in line
    assert f"put them into {hub.cache / 'whole-human'}" in line
    assert "https://drive.google.com/drive/folders/1oWh_-ZRdhtoGQ2Fw24HP41FgLoomVo-y" in line
    assert not (hub.cache / "whole-human" / "best_model.pt").exists()


def test_a_truncated_file_is_refused(hub):
    faults(hub, **{"best_model.pt": {"truncated": 1000}})
    assert "best_model.pt" in (line := refusal("whole-human"))
    assert "should be of size" in line
    faults(hub)
    assert read_checkpoint("whole-human").weights_sha256 == sums(hub.branch)["best_model.pt"]


def test_a_missing_file_is_named(hub):
    (hub.branch / "vocab.json").unlink()
    line = refusal("whole-human")
    assert "404 Client Error. Entry Not Found for url: " in line
    assert "/vocab.json.)" in line


def test_without_a_network_one_line_says_what_to_do(hub, monkeypatch, capsys, blood_file, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", NO_HUB)
    words = ["--atlas", str(blood_file), "--checkpoint", "whole-human", "--output", str(tmp_path / "out")]
    assert main(["embed", *words, "--executor", "ray"]) == BAD_INPUT
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("scgpt-ray: "))
    assert f"hf://{REPO}: [Errno 111] Connection refused" in line
    assert f"from {PUBLISHED['whole-human'].page} and put them into {hub.cache / 'whole-human'}" in line
    assert not (tmp_path / "out").exists()


def test_files_that_a_person_puts_there_are_verified(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NO_HUB)
    place = shutil.copytree(hub.branch, hub.cache / "whole-human")
    assert read_checkpoint("whole-human").folder == str(place)
    (place / "pinned.json").unlink()
    (place / "vocab.json").write_text("{}")
    assert f"{place / 'vocab.json'} has the sha256" in refusal("whole-human")


def test_only_what_is_missing_is_downloaded(hub):
    shutil.copytree(hub.branch, hub.cache / "whole-human")
    (hub.cache / "whole-human" / "args.json").unlink()
    read_checkpoint("whole-human")
    assert [entry["path"].rpartition("/")[2] for entry in hub.requests()] == ["args.json"]


def test_a_cache_that_cannot_be_written(hub, monkeypatch):
    monkeypatch.setenv("SCGPT_RAY_CACHE", "/proc/nowhere")
    assert "cannot be written" in (line := refusal("whole-human"))
    assert "set SCGPT_RAY_CACHE" in line


PROGRAM = """
import logging, sys
from dataclasses import replace
from scgpt_ray.network.checkpoint_cache import cached
from scgpt_ray.network.published import PUBLISHED, Known
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
files = dict.fromkeys(("args.json", "vocab.json", "best_model.pt"), Known())
PUBLISHED["whole-human"] = replace(PUBLISHED["whole-human"], sources=("hf://wanglab/scGPT-human",), files=files)
print(cached("whole-human")[1]["best_model.pt"])
"""


def start():
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_part(hub):
    for _ in range(600):
        parts = list((hub.cache / "whole-human").glob(".best_model.pt.*.part"))
        if parts and parts[0].stat().st_size >= 10 * 2**20:
            return parts[0]
        time.sleep(0.05)
    raise AssertionError("the download did not begin")


def test_a_killed_download_is_resumed(hub):
    weights = hub.branch / "best_model.pt"
    weights.write_bytes(np.random.default_rng(0).bytes(12 * 2**20))
    hub.publish(f"hf://{REPO}", **{"best_model.pt": Known()})
    faults(hub, **{"best_model.pt": {"sends": HANGS_AFTER}})
    with start() as process:
        part = wait_for_part(hub)
        process.kill()
        process.wait()
        n_bytes = part.stat().st_size
    faults(hub)
    assert cached("whole-human")[1] == sums(hub.branch) == sums(hub.cache / "whole-human")
    ranges = [entry["range"] for entry in hub.requests() if "stored" in entry["path"]]
    assert ranges == [None, f"bytes={n_bytes}-"]
    assert n_bytes >= 10 * 2**20
    assert not list((hub.cache / "whole-human").glob(".*"))


def test_two_processes_download_once(hub):
    faults(hub, **{"best_model.pt": {"seconds": 3}})
    with start() as one, start() as other:
        results = [process.communicate(timeout=120) for process in (one, other)]
    assert [out.strip() for out, _ in results] == [sums(hub.branch)["best_model.pt"]] * 2
    assert sum("waiting for another process" in err for _, err in results) == 1
    assert sorted(entry["path"].rpartition("/")[2] for entry in hub.requests()) == sorted(NAMES)


def test_a_folder_of_a_hub(hub, caplog, monkeypatch):
    first = read_checkpoint(f"hf://{REPO}")
    assert Path(first.folder).parent == hub.cache / "hub"
    args = hub.branch / "args.json"
    args.write_text(json.dumps(json.loads(args.read_text()) | {"note": "a new commit"}))
    second = read_checkpoint(f"hf://{REPO}@main")
    assert second.folder != first.folder
    assert dict(second.files.sha256) == sums(hub.branch)
    monkeypatch.setenv("HF_ENDPOINT", NO_HUB)
    with caplog.at_level("WARNING"):
        assert read_checkpoint(f"hf://{REPO}@main").folder == second.folder
    assert "of the cache is used" in caplog.text
    commit = first.folder.rpartition("@")[2]
    caplog.clear()
    assert read_checkpoint(f"hf://{REPO}@{commit}").folder == first.folder
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_subfolder_with_safetensors(hub):
    from scgpt_ray.network.checkpoint import write_checkpoint

    there = read_checkpoint(hub.branch)
    place = hub.branch / "small" / "one"
    write_checkpoint(place, there.architecture, there.vocabulary, there.tensors, as_safetensors=True)
    found = read_checkpoint(f"hf://{REPO}@main/small/one")
    assert dict(found.files.sha256).keys() == {"args.json", "vocab.json", "model.safetensors"}
    assert all(found.tensors[name].equal(tensor) for name, tensor in there.tensors.items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://wanglab", "names no repository; expected hf://owner/repo[@revision][/subfolder]"),
        ("hf://no/body", "404"),
        (f"hf://{REPO}@v9", "404"),
        (f"hf://{REPO}/nowhere", "404"),
        (f"hf://{REPO}@" + "0" * 40, "404"),
    ],
)
def test_folders_of_a_hub_that_are_not_there(hub, name, said):
    assert said in refusal(name)


def test_an_object_store_is_read_once_per_machine(hub):
    place = Folder.at(f"file://{hub.branch}")
    files = CheckpointFiles(place.uri, tuple(sums(hub.branch).items()))
    content = files.read("best_model.pt")
    assert content == (hub.branch / "best_model.pt").read_bytes()
    copy = local_copy(place, "best_model.pt", sums(hub.branch)["best_model.pt"])
    assert copy.parent == hub.cache / "sha256"
    (hub.branch / "best_model.pt").unlink()
    assert files.read("best_model.pt") == content
    (hub.branch / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"vocab\.json has the sha256"):
        files.read("vocab.json")


def test_the_table():
    assert list(PUBLISHED) == ["whole-human", "scGPT_CP", "brain", "blood", "heart", "lung", "kidney", "pan-cancer"]
    for published in PUBLISHED.values():
        assert list(published.files) == list(NAMES)
        assert published.page.startswith("https://drive.google.com/drive/folders/")
        assert all(source.startswith(("hf://", "s3://")) for source in published.sources)
        for known in published.files.values():
            assert known.sha256 is None or len(bytes.fromhex(known.sha256)) == 32


@pytest.mark.golden
def test_golden_checkpoint_by_name(hub, shared):
    golden = shared / "golden" / "flash_names" / "checkpoint"
    shutil.rmtree(hub.branch)
    shutil.copytree(golden, hub.branch)
    hub.publish(f"hf://{REPO}", **{name: Known(digest) for name, digest in sums(golden).items()})
    found, expected = read_checkpoint("whole-human"), read_checkpoint(golden)
    assert found.weights_sha256 == expected.weights_sha256
    assert all(found.tensors[name].equal(tensor) for name, tensor in expected.tensors.items())
