"""What prune removes, and what it keeps."""

import json
import time

import pytest

import scgpt_ray
from scgpt_ray.cli import BAD_INPUT, DONE, main
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.lease import Lease
from scgpt_ray.records import Manifest
from scgpt_ray.storage import Folder


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def litter(run, other):
    """Leave in a folder what runs that were killed, or that had another plan, would; returns the names."""
    foreign = other.read("parts/part-00000.parquet")
    left = {
        "parts/part-00007.parquet": foreign,
        "parts/part-00002.parquet.old": b"x",
        "earlier.npy": b"xx",
        "checkpoint/args.json": b"{}",
    }
    if run.is_local:
        left |= {".plan.json.0a.tmp": b"", "parts/.part-00001.parquet.0b.tmp": b"xyz"}
    for name, content in left.items():
        run.write(name, content)
    return left


@pytest.fixture
def other(make_embeddings, tmp_path):
    return make_embeddings(tmp_path / "other", weights="of another plan")


def test_a_finished_run(make_embeddings, other, tmp_path, capsys):
    run = make_embeddings(tmp_path / "run")
    for name in ("notes.txt", "parts/a.parquet"):
        (run.path / name).write_text("mine")
    clean = tree(run.path)
    left = litter(run, other)
    full = tree(run.path)
    assert main(["prune", run.uri, "--dry-run"]) == DONE
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (listed["removed"], listed["files"]) == (False, {name: len(content) for name, content in left.items()})
    assert tree(run.path) == full, "a dry run changes nothing"
    assert main(["prune", run.uri]) == DONE
    *lines, values = capsys.readouterr().out.splitlines()
    done = json.loads(values)
    assert (done["removed"], done["files"], done["bytes"]) == (True, listed["files"], sum(listed["files"].values()))
    assert lines[-1] == f"removed: {len(left)} files, {done['bytes']} bytes"
    assert tree(run.path) == clean
    assert scgpt_ray.validate(embeddings=run.uri) == []
    assert scgpt_ray.prune(folder=run.uri).files == {}


def test_an_unfinished_run_keeps_what_it_resumes_from(make_embeddings, other, tmp_path):
    run = make_embeddings(tmp_path / "run")
    run.remove(Manifest.file)
    run.write("parts/part-00001.parquet", b"torn")
    run.write("parts/part-00002.parquet", other.read("parts/part-00002.parquet"))
    run.write("parts/part-00009.parquet", run.read("parts/part-00000.parquet"))
    run.write("earlier.npy", b"in use")
    run.write("checkpoint/args.json", b"in use")
    removed = scgpt_ray.prune(folder=run.uri).files
    assert sorted(removed) == [f"parts/part-0000{number}.parquet" for number in (1, 2, 9)]
    assert sorted(tree(run.path)) == ["checkpoint/args.json", "earlier.npy", "parts/part-00000.parquet", "plan.json"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_never_while_a_run_holds_the_folder(dry_run, make_embeddings, other, tmp_path, capsys):
    run = make_embeddings(tmp_path / "run")
    litter(run, other)
    Lease.of_this_process("embed").replace(machine="elsewhere", heartbeat=time.time()).write(run)
    before = tree(run.path)
    assert main(["prune", run.uri, *["--dry-run"] * dry_run]) == BAD_INPUT
    assert "is in use by embed on" in capsys.readouterr().err
    assert tree(run.path) == before


def test_an_index(make_embeddings, tmp_path):
    run = make_embeddings(tmp_path / "run")
    index = Folder.at(tmp_path / "index")
    scgpt_ray.build_index(embeddings=run.uri, output=index.uri)
    clean = tree(index.path)
    stray = ["ids-00003.npy", "labels-00003.parquet", "shard-00003.faiss", "shard-00003.json", "vectors-00003.npy"]
    for name in stray:
        index.write(name, b"stray")
    assert sorted(scgpt_ray.prune(folder=index.uri).files) == stray
    assert tree(index.path) == clean


def test_on_s3(make_embeddings, other, s3, tmp_path):
    run, folder = make_embeddings(tmp_path / "run"), Folder.at(f"{s3}/run")
    for name, content in tree(run.path).items():
        folder.write(name, content)
    left = litter(folder, other)
    assert sorted(scgpt_ray.prune(folder=folder.uri, dry_run=True).files) == sorted(left)
    assert sorted(scgpt_ray.prune(folder=folder.uri).files) == sorted(left)
    assert folder.names() == ["manifest.json", "plan.json"]
    assert scgpt_ray.validate(embeddings=folder.uri) == []


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ReferenceSetError, match=r"holds no plan\.json or index\.json"):
        scgpt_ray.prune(folder=str(tmp_path))
    assert (tmp_path / "mine.txt").exists()
