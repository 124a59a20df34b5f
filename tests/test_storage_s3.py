"""Folders on an object store: a server on loopback, in places behind a proxy that logs and refuses requests."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from scgpt_ray import patience
from scgpt_ray.atlas.plan import cut
from scgpt_ray.atlas.source import locate
from scgpt_ray.cli import BAD_INPUT, main
from scgpt_ray.config import CellSettings
from scgpt_ray.errors import ConfigError, OutputError
from scgpt_ray.storage import Folder, require_reachable

SIZE = 60_000_000


def staged(folder, name, content):
    with folder.staged(name) as path:
        path.write_bytes(content)


@pytest.mark.parametrize("write", [Folder.write, staged])
@pytest.mark.parametrize("size", [0, 1000, 12_000_000])
def test_write_read_and_list(s3, size, write, tmp_path):
    folder, content = Folder.at(f"{s3}/a b/#?%20"), os.urandom(size)
    assert (folder.names(), folder.has("x"), folder.size("x")) == ([], False, None)
    write(folder, "x", b"old")
    write(folder, "x", content)
    assert (folder.read("x"), folder.size("x"), folder.names()) == (content, size, ["x"])
    assert folder.fetch("x", tmp_path).read_bytes() == content
    folder.remove("x")
    assert Folder.at(s3).folder("a b").names() == []
    for ask in (folder.read, folder.remove):
        with pytest.raises(FileNotFoundError):
            ask("x")


def test_subfolders_are_listed_and_deleted_whole(s3):
    folder = Folder.at(f"{s3}/out")
    assert folder.subfolders() == []
    for name in ("file", "b/parts/x", "a/x", "ab/x"):
        folder.write(name, b"1")
    assert folder.subfolders() == ["a", "ab", "b"]
    folder.folder("b").remove_all()
    folder.folder("a").remove_all()
    assert (folder.subfolders(), folder.names(), folder.folder("ab").names()) == (["ab"], ["file"], ["x"])


def test_ranges_are_those_of_the_file(s3):
    content = os.urandom(3_000_000)
    Folder.at(s3).write("x", content)
    with Folder.at(s3).open("x") as stream:
        for place, size in [(0, 1), (262_140, 10), (2_999_990, 100), (5, 300_000), (3_000_000, 7), (524_288, 262_143)]:
            stream.seek(place)
            assert stream.read(size) == content[place : place + size]


def test_a_small_file_is_one_upload_without_trailing_checksums(s3, proxy):
    """Ceph answers 411 to them, and other stores keep them as content."""
    Folder.at(s3).write("x", bytes(1000))
    requests = [(entry["request"].split()[0], entry["headers"]) for entry in proxy.requests()]
    assert [method for method, _ in requests] == ["PUT", "HEAD"]
    assert not [name for name in requests[0][1] if "trailer" in name.lower() or "checksum" in name.lower()]


UPLOAD = """
import sys
from scgpt_ray.ending import interruptible
from scgpt_ray.storage import Folder
with interruptible():
    if sys.argv[2] == "write":
        Folder.at(sys.argv[1]).write("x", b"2" * int(sys.argv[3]))
    else:
        with Folder.at(sys.argv[1]).staged("x") as path:
            path.write_bytes(b"2" * int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["write", "staged"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_an_upload_leaves_a_whole_object(s3, proxy, how, sent):
    Folder.at(s3).write("x", b"1" * SIZE)
    n_before = len(proxy.requests())
    command = [sys.executable, "-c", UPLOAD, s3, how, str(SIZE)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while len(proxy.requests()) < n_before + 3:  # the upload was begun, and a piece has arrived
            time.sleep(0.01)
        process.send_signal(sent)
        assert process.wait(30) != 0
    content = Folder.at(s3).read("x")
    assert len(content) == SIZE
    assert set(content) == (set(b"1") if sent == signal.SIGKILL else set(content[:1]))


def test_an_upload_of_which_a_piece_fails_is_not_committed(s3, proxy, monkeypatch):
    monkeypatch.setattr(patience, "LONGEST_S", 0.0)
    Folder.at(s3).write("x", b"old")
    proxy.trouble("503 partNumber=2")
    with pytest.raises(OSError, match="SLOW_DOWN"):
        Folder.at(s3).write("x", bytes(30_000_000))
    assert Folder.at(s3).read("x") == b"old"
    assert not [
        entry for entry in proxy.requests() if entry["request"].startswith("POST") and "uploadId" in entry["request"]
    ]


@pytest.mark.slow
def test_an_outage_is_waited_for(s3, outage, caplog):
    folder = Folder.at(s3)
    folder.write("x", b"12345")
    asks = {
        "names": lambda: folder.names() == ["x"],
        "size": lambda: folder.size("x") == 5,
        "read": lambda: folder.read("x") == b"12345",
        "write": lambda: folder.write("y", b"1") is None,
        "remove": lambda: folder.remove("y") is None,
    }
    for name, ask in asks.items():
        caplog.clear()
        outage("0 " if name == "size" else "503 ")
        assert ask(), name
        assert f"{s3[5:]}" in caplog.text
        assert "waiting" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "name"), [("0 ", "atlas"), ("0 ", "cells.h5ad"), ("503 ", "cells.h5ad")])
def test_an_outage_while_an_atlas_is_read(s3, outage, blood, make_soma, tmp_path, caplog, name, trouble):
    # TileDB itself asks a store with 503 for two minutes, before it says so (as `test_patience.py` has it).
    few = blood[:20].copy()
    few.write_h5ad(tmp_path / "cells.h5ad")
    make_soma(few, tmp_path / "atlas")
    for file in [tmp_path / "cells.h5ad", *(tmp_path / "atlas").rglob("*")]:
        if file.is_file():
            Folder.at(s3).write(str(file.relative_to(tmp_path)), file.read_bytes())
    source = locate(f"{s3}/{name}", CellSettings())
    (partition,) = cut(source.joinids(), 100)
    caplog.clear()
    outage(trouble)
    found = pa.concat_tables(source.read(partition, np.arange(64, dtype=np.int32)))
    assert found["obs_id"].to_pylist() == few.obs_names.tolist()
    assert "waiting" in caplog.text


def test_what_is_not_allowed(s3, proxy):
    proxy.trouble("403 ")
    with pytest.raises(ConfigError, match=r"ACCESS_DENIED.*and your credentials"):
        require_reachable(f"{s3}/x")
    proxy.trouble("403 PUT")
    require_reachable(f"{s3}/x")
    with pytest.raises(OutputError, match=r"ACCESS_DENIED.*give --output a folder you may write to"):
        Folder.at(f"{s3}/x").require_writable()


def test_a_place_that_cannot_be_used(s3, monkeypatch):
    require_reachable(f"{s3}/new/folder")
    require_reachable(s3)
    with pytest.raises(ConfigError, match=r"there is no such bucket; expected a bucket .*; check the name, --storage"):
        require_reachable("s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9: .*connect"):
        require_reachable(f"{s3}/x")
    assert time.monotonic() - began < 10


VERBS = {
    "embed": ("--atlas", "{}/a.h5ad", "--checkpoint", "demo", "--output", "{}/out"),
    "index": ("--embeddings", "{}/e", "--output", "{}/i"),
    "integrate": ("--embeddings", "{}/e", "--batch-column", "b", "--output", "{}/i"),
    "export": ("--embeddings", "{}/e", "--output", "x.h5ad"),
    "validate": ("--index", "{}/i", "--config", "{}/c.yaml"),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_bucket_that_is_not_there_in_one_line(s3, verb, capsys):
    words = [word.format("s3://no-such-bucket") for word in VERBS[verb]]
    assert main([verb, *words]) == BAD_INPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scgpt-ray:")]
    assert "there is no such bucket" in line
