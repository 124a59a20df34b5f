"""Mapping onto an index that was given away: the embeddings are gone, and the index is on a hub or in a bucket."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import scgpt_ray
from scgpt_ray.cli import DONE, main
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.index.description import require_index
from scgpt_ray.pipelines.hub_index import cached_index, share_index
from scgpt_ray.storage import Folder

REPO = "owner/blood-index"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folder of a hub on loopback, and its URL."""
    folder = tmp_path_factory.mktemp("hub")
    script = Path(__file__).with_name("hub_server.py")
    with subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True) as process:
        yield folder, f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


@pytest.fixture
def cache(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub[1])
    monkeypatch.setenv("SCGPT_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def published(make_embeddings, hub, tmp_path_factory):
    """An index of synthetic vectors in the branch main; its embeddings are deleted."""
    place = tmp_path_factory.mktemp("published")
    run = make_embeddings(place / "run", n_cells=120)
    branch = hub[0] / "hub" / REPO / "main"
    options = {"executor": "serial", "factory": "IVF2,SQ8", "shards": 2}
    scgpt_ray.build_index(embeddings=run.uri, output=str(branch / "sub"), **options)
    shutil.rmtree(place / "run")
    return branch


def test_it_is_downloaded_once(published, hub, cache):
    folder = cached_index(f"hf://{REPO}/sub")
    assert folder.path.is_relative_to(cache / "hub")
    names = {path.name for path in folder.path.iterdir()} - {"pinned.json"}
    left_out = {"README.md", "report.html", "template.faiss", "template.json"}
    assert names == {path.name for path in (published / "sub").iterdir() if path.is_file()} - left_out
    for name in names:
        assert folder.read(name) == (published / "sub" / name).read_bytes()
    n_requests = len((hub[0] / "log.jsonl").read_text().splitlines())
    assert cached_index(f"hf://{REPO}/sub") == folder
    assert len((hub[0] / "log.jsonl").read_text().splitlines()) == n_requests + 1  # which commit is main?


def test_without_a_network_the_cache_is_used(published, cache, monkeypatch, caplog):
    folder = cached_index(f"hf://{REPO}/sub")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cached_index(f"hf://{REPO}/sub") == folder
    assert "cannot be asked" in caplog.text
    assert cached_index(f"hf://{REPO}@{folder.path.name.partition('@')[2][:40]}/sub") == folder


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (f"hf://{REPO}", r"404.*; or download it, and give --index the folder"),
        ("hf://owner", "names no repository"),
    ],
)
def test_what_is_no_index(uri, said, published, cache):
    with pytest.raises(ReferenceSetError, match=said):
        cached_index(uri)


@pytest.mark.parametrize("key", ["name", "labels"])
def test_names_that_lead_out_of_the_cache_are_refused(key, published, hub, cache):
    other = hub[0] / "hub" / "owner" / f"evil-{key}" / "main"
    shutil.copytree(published / "sub", other)
    description = json.loads((other / "index.json").read_bytes())
    description["shards"][1][key] = "../../../evil"
    (other / "index.json").write_text(json.dumps(description))
    with pytest.raises(ReferenceSetError, match=rf"shards\.1\.{key}: String should match pattern"):
        cached_index(f"hf://owner/evil-{key}")


class Elsewhere(SerialExecutor):
    """An executor whose workers are on other machines."""

    is_here = False


def test_workers_on_other_machines_get_a_copy(published, cache, tmp_path):
    folder = cached_index(f"hf://{REPO}/sub")
    assert share_index(folder, Folder.at(tmp_path), SerialExecutor()) == folder
    copy = share_index(folder, Folder.at(tmp_path), Elsewhere())
    assert copy.path.parent == tmp_path
    assert require_index(copy) == require_index(folder)
    assert {path.name for path in copy.path.iterdir()} == {path.name for path in folder.path.iterdir()} - {
        "pinned.json"
    }


@pytest.fixture
def bucket(monkeypatch):
    """URI of a bucket on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    pafs.FileSystem.from_uri("s3://given?allow_bucket_creation=true")[0].create_dir("given")
    yield "s3://given"
    server.stop()


@pytest.mark.slow
def test_an_index_that_was_given_away(blood, checkpoint, hub, bucket, cache, tmp_path, monkeypatch, caplog):
    """The command of the card runs; a copy in a bucket or on a hub gives the same labels."""
    blood[:60].copy().write_h5ad(tmp_path / "atlas.h5ad")
    run, index = tmp_path / "run", hub[0] / "hub" / "owner" / "blood" / "main"
    embed = {"atlas": str(tmp_path / "atlas.h5ad"), "checkpoint": str(checkpoint), "obs_columns": ["cell_type"]}
    scgpt_ray.embed(executor="serial", output=str(run), **embed)
    scgpt_ray.build_index(executor="serial", embeddings=str(run), output=str(index))
    shutil.rmtree(run)
    (tmp_path / "atlas.h5ad").unlink()
    pafs.copy_files(str(index), f"{bucket}/index")

    here = shutil.copytree(index, tmp_path / "here")
    blood[60:80].copy().write_h5ad(here / "cells.h5ad")
    (here / checkpoint.name).symlink_to(checkpoint)
    monkeypatch.chdir(here)
    [command] = (line for line in (here / "README.md").read_text().splitlines() if line.startswith("scgpt-ray "))
    found = []
    for place in (".", f"{bucket}/index", "hf://owner/blood"):
        words = command.replace("--index .", f"--index {place}").split()[1:]
        caplog.clear()
        assert main([*words, "--truth-column", "cell_type", "--executor", "serial"]) == DONE
        found.append(pq.read_table(tmp_path / "mapped" / "predictions.parquet"))
        # What needs the embeddings is left out; log and report say so.
        reason = "plan.json, which names the atlas, is missing"
        assert f"without PCA + kNN: {run}: {reason}" in caplog.text
        assert reason in (tmp_path / "mapped" / "report.html").read_text()
        shutil.rmtree(tmp_path / "mapped")
    assert found[0].num_rows == 20
    assert found[1].equals(found[0])
    assert found[2].equals(found[0])
