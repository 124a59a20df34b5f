import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from scgpt_ray.errors import OutputError
from scgpt_ray.storage import Folder


def test_write_read_and_list(tmp_path):
    folder = Folder.at(tmp_path / "new")
    assert folder.names() == []
    folder.write("b.json", b"1")
    folder.write("parts/a", b"2")
    assert (folder.read("b.json"), folder.read("parts/a")) == (b"1", b"2")
    assert folder.names() == ["b.json"]
    assert folder.folder("parts").names() == ["a"]
    assert folder.has("b.json")
    assert not folder.has("parts")


def test_subfolders_are_listed_and_deleted_whole(tmp_path):
    folder = Folder.at(tmp_path)
    assert folder.folder("none").subfolders() == []
    for name in ("file", "b/parts/x", "a/x", "ab/x"):
        folder.write(name, b"1")
    assert folder.subfolders() == ["a", "ab", "b"]
    folder.folder("b").remove_all()
    folder.folder("a").remove_all()
    assert (folder.subfolders(), folder.names()) == (["ab"], ["file"])


def test_a_write_replaces_and_leaves_nothing_else(tmp_path):
    folder = Folder.at(tmp_path)
    folder.write("x", b"old")
    folder.write("x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert folder.read("x") == b"new"


def staged(folder, name, content):
    with folder.staged(name) as path:
        path.write_bytes(content)


@pytest.mark.parametrize("write", [Folder.write, staged])
def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, write):
    """A crash after the rename would otherwise leave a torn file under the right name."""
    done = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor):
        done.append(("fsync", os.fstat(descriptor).st_size, os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def watched_replace(path, target):
        done.append(("replace", path.stat().st_size, path.stat().st_ino))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write(Folder.at(tmp_path), "x", b"12345")
    file = (tmp_path / "x").stat().st_ino
    assert done == [("fsync", 5, file), ("replace", 5, file)]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path):
    folder = Folder.at(tmp_path)
    folder.write("x", b"old")
    with pytest.raises(TypeError):
        folder.write("x", "not bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert folder.read("x") == b"old"


def test_a_write_that_runs_out_of_space_keeps_the_old_file(tmp_path):
    Folder.at(tmp_path).write("x", b"old")
    # A limit on the size of files stands in for a full disk: the kernel refuses the write half-way through.
    program = f"""
import resource, signal
from scgpt_ray.storage import Folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Folder.at({str(tmp_path)!r}).write("x", bytes(5000))
except OSError as error:
    raise SystemExit(error.errno)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert Folder.at(tmp_path).read("x") == b"old"


def test_relative_places_are_resolved_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = pickle.loads(pickle.dumps(Folder.at("out")))
    monkeypatch.chdir("/")
    folder.write("x", b"1")
    assert (tmp_path / "out" / "x").read_bytes() == b"1"


def test_the_remote_side_does_the_same(tmp_path):
    folder = Folder(f"file://{tmp_path}/remote")
    assert not folder.is_local
    assert folder.names() == []
    assert not folder.has("x")
    (tmp_path / "remote").mkdir()
    folder.require_writable()
    folder.write("x", b"1")
    assert folder.names() == ["x"]
    assert folder.read("x") == b"1"
    folder.remove("x")
    assert folder.names() == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written \(.*\); expected a writable folder; give --output"):
        Folder.at(tmp_path / "file" / "out").require_writable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        Folder.at(tmp_path / "out").require_writable()


def test_require_writable_leaves_no_trace(tmp_path):
    Folder.at(tmp_path / "a" / "b").require_writable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_staged_file_is_there_whole_or_not_at_all(tmp_path, scheme):
    folder = Folder(f"{scheme}{tmp_path}")
    with folder.staged("a.bin") as path:
        path.write_bytes(b"12345")
        assert not folder.has("a.bin")
    assert (folder.read("a.bin"), folder.size("a.bin"), folder.size("b.bin")) == (b"12345", 5, None)
    with pytest.raises(OSError, match="full"), folder.staged("a.bin") as path:
        path.write_bytes(b"67")
        raise OSError("full")
    assert folder.read("a.bin") == b"12345"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_a_file_is_fetched_only_from_elsewhere(tmp_path):
    here, cache = Folder.at(tmp_path / "here"), tmp_path / "cache"
    cache.mkdir()
    here.write("a.bin", b"123")
    assert here.fetch("a.bin", cache) == here.path / "a.bin"
    fetched = Folder(f"file://{here.uri}").fetch("a.bin", cache)
    assert fetched.parent == cache
    assert fetched.read_bytes() == b"123"
    with pytest.raises(FileNotFoundError):
        Folder(f"file://{here.uri}").fetch("b.bin", cache)
