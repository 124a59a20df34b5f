"""Checksums, and folders that appear complete."""

import subprocess

import pytest

from scgpt_ray.errors import OutputError
from scgpt_ray.parts import checksums
from scgpt_ray.parts.checksums import SUMS, line_of, new_folder
from scgpt_ray.storage import Folder


def fill(place):
    (place / "data").mkdir()
    (place / "data" / "one").write_bytes(b"1")
    (place / "two words").write_bytes(b"")


def verify(folder):
    return subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True).returncode


def test_the_line_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert line_of(tmp_path / "x", "data/x") == f"{digest}  data/x\n"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_sha256sum_verifies_every_file(scheme, tmp_path):
    output = Folder.at(f"{scheme}{tmp_path}/new/folder")
    if scheme:
        # An object store needs no folders. What an interrupted upload left is no obstacle.
        (tmp_path / "new" / "folder" / "data").mkdir(parents=True)
        output.write(checksums._UNFINISHED, b"")
        output.write("two words", b"older")
    with new_folder(output, last="data/") as place:
        fill(place)
    there = tmp_path / "new" / "folder"
    names = sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file())
    assert names == [SUMS, "data/one", "two words"]
    assert verify(there) == 0
    (there / "data" / "one").write_bytes(b"2")
    assert verify(there) != 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


def test_sums_are_uploaded_last(tmp_path, monkeypatch):
    written = []
    staged = Folder.staged
    monkeypatch.setattr(Folder, "staged", lambda folder, name: written.append(name) or staged(folder, name))
    (tmp_path / "data").mkdir()
    (tmp_path / checksums._UNFINISHED).touch()
    with new_folder(Folder.at(f"file://{tmp_path}"), last="data/") as place:
        fill(place)
    assert written == ["two words", "data/one", SUMS]


def test_nothing_is_left_of_a_failure(tmp_path):
    with pytest.raises(OSError, match="disk"), new_folder(Folder.at(tmp_path / "folder")) as place:
        fill(place)
        raise OSError("disk")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    with pytest.raises(OutputError, match=r"holds files; expected a new folder"), new_folder(Folder.at(tmp_path)):
        pass
    for name in ("folder/file", "file", SUMS):
        there = tmp_path / name.replace("/", "-") / name
        there.parent.mkdir(parents=True)
        there.write_bytes(b"")
        output = Folder.at(f"file://{tmp_path}/{name.replace('/', '-')}")
        with pytest.raises(OutputError, match=r"holds files"), new_folder(output):
            pass
    output.write(checksums._UNFINISHED, b"")
    with pytest.raises(OutputError, match=r"holds files"), new_folder(output):
        pass


def test_an_interrupted_upload_is_repeated(tmp_path, monkeypatch):
    output = Folder.at(f"file://{tmp_path}")
    staged = Folder.staged

    def stops(folder, name):
        if name == SUMS:
            raise OSError("away")
        return staged(folder, name)

    monkeypatch.setattr(Folder, "staged", stops)
    with pytest.raises(OSError, match="away"), new_folder(output) as place:
        (place / "one").write_bytes(b"1")
    monkeypatch.undo()
    with new_folder(output) as place:
        (place / "one").write_bytes(b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [SUMS, "one"]
    assert verify(tmp_path) == 0
