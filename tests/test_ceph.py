"""The chain of verbs on Ceph's S3 gateway, which is stricter than the mock.

A monitor, a disk in memory and a gateway run on loopback; Debian's packages ceph and radosgw have the programs.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.object_store import ObjectStore, using
from scgpt_ray.storage import Folder

PROGRAMS = ("monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
CONFIGURATION = """[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{port}
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
mon allow pool size one = true
osd crush chooseleaf type = 0
osd objectstore = memstore
osd data = {folder}/osd
mon data = {folder}/mon
mon data avail crit = 1
mon data avail warn = 1
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
ms bind ipv6 = false
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
"""
SERIAL = ("--executor", "serial")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """URL of a gateway whose user has the key `id` and the secret `key`."""
    if absent := [name for name in PROGRAMS if not shutil.which(name)]:
        pytest.skip(f"needs {', '.join(absent)}, of Debian's packages ceph and radosgw")
    folder = tmp_path_factory.mktemp("ceph")
    fsid, disk, monitor, port = uuid.uuid4(), uuid.uuid4(), free_port(), free_port()
    (folder / "ceph.conf").write_text(CONFIGURATION.format(fsid=fsid, port=monitor, folder=folder))
    (folder / "mon").mkdir()
    (folder / "osd").mkdir()
    variables, daemons = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}, []

    def run(*words):
        subprocess.run([*map(str, words)], env=variables, check=True, timeout=60, capture_output=True)

    def start(*words):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        daemons.append(subprocess.Popen([*map(str, words), "-f"], env=variables, **quiet))

    try:
        run("monmaptool", "--create", "--addv", "a", f"v1:127.0.0.1:{monitor}", "--fsid", fsid, folder / "monmap")
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", folder / "monmap")
        start("ceph-mon", "-i", "a")
        run("ceph", "osd", "new", disk)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        start("ceph-osd", "-i", "0")
        start("radosgw", "-n", "client.rgw", "--rgw-frontends", f"beast endpoint=127.0.0.1:{port}")
        run("radosgw-admin", "user", "create", "--uid=u", "--display-name=u", "--access-key=id", "--secret=key")
        wait_for(f"http://127.0.0.1:{port}", daemons[-1])
        yield f"http://127.0.0.1:{port}"
    finally:
        for daemon in reversed(daemons):
            daemon.kill()
            daemon.wait()


def wait_for(url, daemon):
    for _ in range(300):
        assert daemon.poll() is None, "the gateway has ended"
        try:
            urllib.request.urlopen(url).close()
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(url)


@pytest.mark.slow
def test_chain(gateway, blood, blood_file, checkpoint, make_soma, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    here, storage = "s3://cells", ("--storage", f"endpoint={gateway}", "region=us-east-1")
    with ObjectStore.of({"endpoint": gateway}).environment():
        options = {"endpoint_override": gateway, "region": "us-east-1", "allow_bucket_creation": True}
        pafs.S3FileSystem(**options).create_dir("cells")
    make_soma(blood.copy(), tmp_path / "atlas")
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    shutil.copy(blood_file, tmp_path / "cells.h5ad")

    def done(*words):
        assert main([*words, *storage]) == DONE

    with using(ObjectStore.of({"endpoint": gateway})):
        for file in filter(Path.is_file, tmp_path.rglob("*")):
            Folder.at(here).write(str(file.relative_to(tmp_path)), file.read_bytes())
        Folder.at(here).write("large", bytes(range(256)) * 2**16)  # several pieces
        assert Folder.at(here).read("large") == bytes(range(256)) * 2**16
    embed = ("embed", "--atlas", f"{here}/atlas", "--checkpoint", f"{here}/checkpoint", "--max-length", "16", *SERIAL)
    done(*embed, "--output", f"{here}/out", "--obs-columns", "cell_type")
    done("index", "--embeddings", f"{here}/out", "--output", f"{here}/index", "--label-columns", "cell_type", *SERIAL)
    done("map", "--query", f"{here}/cells.h5ad", "--index", f"{here}/index", "--checkpoint", f"{here}/checkpoint",
         "--output", f"{here}/mapped", "--truth-column", "cell_type", *SERIAL)  # fmt: skip
    for kind, name in (("h5ad", "out.h5ad"), ("soma", "array"), ("hf", "set")):
        done("export", "--embeddings", f"{here}/out", "--to", kind, "--output", f"{here}/{name}")
    done("validate", "--embeddings", f"{here}/out")
    done("validate", "--index", f"{here}/index")
    capsys.readouterr()
    assert main([*embed, "--output", "s3://no-such-bucket/out", *storage]) == BAD_INPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scgpt-ray:")]
    assert "s3://no-such-bucket/out" in line
