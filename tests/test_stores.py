"""The chain of verbs on stores that differ from the mock of S3: Ceph, and emulators of Google's and Azure's.

All run on loopback. Each is skipped where its programs are absent: Debian's packages ceph and radosgw, fake-gcs-server
(a Go program; Arrow waits for ever for large objects of the Python package gcp-storage-emulator), and azurite of npm.
"""

import os
import shutil
import socket
import subprocess
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.object_store import ObjectStore, using
from scgpt_ray.storage import Folder

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
osd class update on start = false
osd crush update on start = false
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


def require(*programs):
    if absent := [name for name in programs if not shutil.which(name)]:
        pytest.skip(f"needs {', '.join(absent)} on PATH")


@contextmanager
def ceph(folder, port):
    """A monitor, a disk in memory and a gateway."""
    require("monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
    fsid, disk, monitor = uuid.uuid4(), uuid.uuid4(), free_port()
    (folder / "ceph.conf").write_text(CONFIGURATION.format(fsid=fsid, port=monitor, folder=folder))
    (folder / "mon").mkdir()
    (folder / "osd").mkdir()
    variables, daemons = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}, []

    def run(*words):
        for last in (False, False, False, False, True):
            done = subprocess.run([*map(str, words)], env=variables, timeout=180, capture_output=True, text=True)
            # A client may send its first command before it has received the identity of the cluster.
            if last or "wrong fsid" not in done.stderr:
                break
        assert done.returncode == 0, done.stderr

    def start(*words):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        daemons.append(subprocess.Popen([*map(str, words), "-f"], env=variables, **quiet))

    try:
        run("monmaptool", "--create", "--addv", "a", f"v1:127.0.0.1:{monitor}", "--fsid", fsid, folder / "monmap")
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", folder / "monmap")
        start("ceph-mon", "-i", "a")
        run("ceph", "osd", "new", disk)
        run("ceph", "osd", "crush", "add", "0", "1", "root=default", "host=here")
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        start("ceph-osd", "-i", "0")
        start("radosgw", "-n", "client.rgw", "--rgw-frontends", f"beast endpoint=127.0.0.1:{port}")
        run("radosgw-admin", "user", "create", "--uid=u", "--display-name=u", "--access-key=id", "--secret=key")
        wait_for(port)
        options = {"endpoint": f"http://127.0.0.1:{port}", "region": "us-east-1"}
        with ObjectStore.of(options).environment():
            pafs.S3FileSystem(
                endpoint_override=options["endpoint"], region="us-east-1", allow_bucket_creation=True
            ).create_dir("cells")
        yield options
    finally:
        for daemon in reversed(daemons):
            daemon.kill()
            daemon.wait()


@contextmanager
def google(_folder, port):
    require("fake-gcs-server")
    options = {"google_endpoint": f"http://127.0.0.1:{port}", "anonymous": "true"}
    where = ("-scheme", "http", "-host", "127.0.0.1", "-port", port, "-public-host", f"127.0.0.1:{port}")
    with emulator("gs", options, "fake-gcs-server", "-backend", "memory", *where):
        yield options


@contextmanager
def azure(folder, port):
    require("azurite-blob")
    options = {"azure_endpoint": f"http://127.0.0.1:{port}", "azure_account": "devstoreaccount1"}
    quiet = ("--silent", "--disableTelemetry", "--skipApiVersionCheck")
    with emulator("az", options, "azurite-blob", "--blobPort", port, "--location", folder, *quiet):
        yield options


@contextmanager
def emulator(scheme, options, *words):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*map(str, words)], **quiet) as process:
        try:
            wait_for(int(next(iter(options.values())).rpartition(":")[2]))
            ObjectStore.of(options).filesystem(scheme, "cells").create_dir("cells")
            yield
        finally:
            process.kill()


def wait_for(port):
    for _ in range(600):
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(port)


VARIABLES = {
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "key",
    "GOOGLE_CLOUD_PROJECT": "project",
    # That of every Azurite, as its documentation says.
    "AZURE_STORAGE_KEY": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "here", "atlas"),
    [(ceph, "s3://cells", "atlas"), (google, "gs://cells", "cells.h5ad"), (azure, "az://cells", "cells.h5ad")],
)
def test_chain(server, here, atlas, blood, blood_file, checkpoint, make_soma, tmp_path, monkeypatch, capsys):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "inputs").mkdir()
    (tmp_path / "server").mkdir()
    if atlas == "atlas":
        make_soma(blood.copy(), tmp_path / "inputs" / "atlas")
    shutil.copytree(checkpoint, tmp_path / "inputs" / "checkpoint")
    shutil.copy(blood_file, tmp_path / "inputs" / "cells.h5ad")
    blood[:15].copy().write_h5ad(tmp_path / "inputs" / "query.h5ad")  # too few for a UMAP, which compiles for long
    with server(tmp_path / "server", free_port()) as options:
        chain(here, options, f"{here}/{atlas}", tmp_path / "inputs", capsys)


def chain(here, options, atlas, inputs, capsys):
    storage = ("--storage", *(f"{key}={value}" for key, value in options.items()))

    def done(*words):
        assert main([*words, *storage]) == DONE

    with using(ObjectStore.of(options)):
        for file in filter(Path.is_file, inputs.rglob("*")):
            Folder.at(here).write(str(file.relative_to(inputs)), file.read_bytes())
        Folder.at(here).write("large", bytes(range(256)) * 2**16)  # several pieces
        assert Folder.at(here).read("large") == bytes(range(256)) * 2**16
    embed = ("embed", "--atlas", atlas, "--checkpoint", f"{here}/checkpoint", "--max-length", "16", *SERIAL)
    done(*embed, "--output", f"{here}/out", "--obs-columns", "cell_type")
    done("index", "--embeddings", f"{here}/out", "--output", f"{here}/index", "--label-columns", "cell_type", *SERIAL)
    done("map", "--query", f"{here}/query.h5ad", "--index", f"{here}/index", "--checkpoint", f"{here}/checkpoint",
         "--output", f"{here}/mapped", "--truth-column", "cell_type", *SERIAL)  # fmt: skip
    for kind, name in (("h5ad", "out.h5ad"), ("soma", "array"), ("hf", "set")):
        done("export", "--embeddings", f"{here}/out", "--to", kind, "--output", f"{here}/{name}")
    done("validate", "--embeddings", f"{here}/out")
    done("validate", "--index", f"{here}/index")
    capsys.readouterr()
    assert main([*embed, "--output", f"{here}-no/out", *storage]) == BAD_INPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scgpt-ray:")]
    assert f"{here}-no/out" in line
