import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pyarrow.fs as pafs
import pytest

from scgpt_ray.cli import BAD_INPUT, main
from scgpt_ray.object_store import ObjectStore, current, using
from scgpt_ray.storage import Folder

CEPH = {"AWS_ENDPOINT_URL": "http://ceph:7480"}
REQUIRED = ObjectStore(request_checksums="when_required")
SUPPORTED = {"request_checksums": "when_supported"}


@pytest.fixture
def variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "STORAGE_", "SCGPT_RAY_"))]:
        monkeypatch.delenv(name)
    return lambda values: [monkeypatch.setenv(*item) for item in values.items()]


@pytest.mark.parametrize(
    ("environment", "options", "expected"),
    [
        ({}, {}, ObjectStore()),
        (CEPH, {}, replace(REQUIRED, endpoint="http://ceph:7480")),
        ({**CEPH, "AWS_ENDPOINT_URL_S3": "https://s3"}, {}, replace(REQUIRED, endpoint="https://s3")),
        (CEPH, {"endpoint": "minio:9000"}, replace(REQUIRED, endpoint="https://minio:9000")),
        ({"AWS_REGION": "a", "AWS_DEFAULT_REGION": "b"}, {}, ObjectStore(region="a")),
        ({"AWS_DEFAULT_REGION": "b", "AWS_PROFILE": "p"}, {"region": "c"}, ObjectStore(region="c", profile="p")),
        ({}, {"anonymous": "TRUE"}, ObjectStore(anonymous=True)),
        ({"SCGPT_RAY_PUBLIC_ENDPOINT": "http://a:1"}, {}, ObjectStore(public_endpoint="http://a:1")),
        (
            {"STORAGE_EMULATOR_HOST": "http://g:1", "AZURE_STORAGE_ACCOUNT": "a"},
            {"azure_endpoint": "http://z:1"},
            ObjectStore(google_endpoint="http://g:1", azure_endpoint="http://z:1", azure_account="a"),
        ),
        (CEPH, SUPPORTED, ObjectStore("http://ceph:7480", request_checksums="when_supported")),
    ],
)  # fmt: skip
def test_options_win_over_the_environment(variables, environment, options, expected):
    variables(environment)
    assert ObjectStore.of(options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"secret_key": "x"}, "secret_key is a secret.*AWS_SECRET_ACCESS_KEY.*profile=.*role"),
        ({"vfs.s3.aws_access_key_id": "x"}, "is a secret"),
        ({"session_token": "x"}, "is a secret"),
        ({"endpoint": "http://me:pass@host"}, "endpoint has a password"),
        ({"endpoint": "ftp://host"}, "endpoint=ftp://host is not a URL like"),
        ({"endpoint": "http://host/path"}, "is not a URL like"),
        ({"anonymous": "1"}, "anonymous=1 is not one of true, false"),
        ({"request_checksums": "never"}, "is not one of when_required"),
        ({"regoin": "x"}, "unknown key regoin: give one of endpoint,"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ObjectStore.of(options)


def test_no_secret_is_shown(capsys):
    assert main(["validate", "--index", "s3://b/i", "--storage", "secret_key=hidden"]) == BAD_INPUT
    printed = capsys.readouterr().err
    assert "secret_key is a secret" in printed
    assert "hidden" not in printed


def test_tiledb_says_the_same():
    store = ObjectStore("http://ceph:7480", anonymous=True)
    assert store.tiledb() == {
        "vfs.s3.no_sign_request": "true",
        "vfs.s3.region": "us-east-1",
        "vfs.s3.endpoint_override": "ceph:7480",
        "vfs.s3.scheme": "http",
        "vfs.s3.use_virtual_addressing": "false",
    }
    assert ObjectStore(region="r").tiledb() == {"vfs.s3.no_sign_request": "false", "vfs.s3.region": "r"}


def test_public_buckets_are_not_sought_at_the_own_endpoint():
    own = ObjectStore("http://ceph:7480", "http://copy:1", "r", "p")
    assert own.public("us-west-2") == ObjectStore("http://copy:1", "http://copy:1", "us-west-2", None, anonymous=True)


def test_connecting_leaves_the_environment_as_it_was(variables):
    variables({"AWS_ENDPOINT_URL": "http://other:1", "AWS_PROFILE": "mine"})
    before = dict(os.environ)
    with ObjectStore(profile="theirs").environment():
        assert os.environ["AWS_PROFILE"] == "theirs"
        assert "AWS_ENDPOINT_URL" not in os.environ
    with ObjectStore("http://a:1", request_checksums="when_required").environment():
        assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    assert dict(os.environ) == before


def test_a_place_keeps_the_store_it_was_named_with(variables):
    variables({})
    store = ObjectStore("http://a:1")
    with using(store):
        folder = Folder.at("s3://bucket/x")
    assert current() == ObjectStore()
    for place in (folder, folder.folder("y"), pickle.loads(pickle.dumps(folder))):
        assert place.store == store


def test_a_filesystem_pickles_as_the_value(s3):
    """Ray Train sends one to its workers."""
    store = ObjectStore.of({})
    again = pickle.loads(pickle.dumps(store.filesystem("s3", s3.removeprefix("s3://"))))
    assert isinstance(again, pafs.S3FileSystem)
    assert again.get_file_info(s3.removeprefix("s3://")).type == pafs.FileType.Directory


@pytest.mark.parametrize(("scheme", "kind"), [("gs", pafs.GcsFileSystem), ("az", pafs.AzureFileSystem)])
def test_other_stores_pickle_without_secrets(variables, scheme, kind):
    variables({"AZURE_STORAGE_KEY": "c2VjcmV0"})
    store = ObjectStore(anonymous=True, google_endpoint="http://g:1", azure_account="a", azure_endpoint="http://z:1")
    pickled = pickle.dumps(store.filesystem(scheme, "bucket"))
    assert b"c2VjcmV0" not in pickled
    assert isinstance(pickle.loads(pickled), kind)


def test_an_account_of_azure_is_needed(variables, capsys):
    variables({})
    assert main(["validate", "--index", "az://bucket/index"]) == BAD_INPUT
    assert "no storage account for az:// places; expected" in capsys.readouterr().err


OTHER_PROCESS = """
import pickle, sys
place, sources, checkpoint = pickle.load(sys.stdin.buffer)
place.write("part", b"12345")
assert place.size("part") == 5
assert [len(source.joinids()) for source in sources] == [20, 20]
assert checkpoint.read("args.json")
"""


def test_everything_goes_to_the_store_of_the_driver(s3, s3_server, checkpoint, blood, make_soma, tmp_path):
    """The environment of the worker names another one."""
    from scgpt_ray.atlas.source import locate
    from scgpt_ray.config import CellSettings
    from scgpt_ray.network.checkpoint_files import CheckpointFiles

    few = blood[:20].copy()
    few.write_h5ad(tmp_path / "cells.h5ad")
    make_soma(few, tmp_path / "atlas")
    upload(tmp_path, Folder.at(s3))
    upload(checkpoint, Folder.at(f"{s3}/checkpoint"))
    sources = [locate(f"{s3}/{name}", CellSettings()) for name in ("atlas", "cells.h5ad")]
    places = (Folder.at(f"{s3}/out"), sources, CheckpointFiles.at(f"{s3}/checkpoint"))
    worker = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "elsewhere"}
    subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS], input=pickle.dumps(places), env=worker, check=True, timeout=60
    )
    assert Folder.at(f"{s3}/out").read("part") == b"12345"


def upload(path, folder):
    for file in path.rglob("*"):
        if file.is_file():
            folder.write(str(file.relative_to(path)), file.read_bytes())
