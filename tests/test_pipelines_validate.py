"""Damage is named with its file and its remedy; a repair makes the same bytes again and touches nothing else."""

import json
import shutil

import pytest

import scgpt_ray
from scgpt_ray.errors import AtlasError, ReferenceSetError
from scgpt_ray.records import IndexDescription, Manifest, Plan
from scgpt_ray.storage import Folder

PART = "parts/part-00001.parquet"


@pytest.fixture(scope="module")
def made(blood_file, checkpoint, tmp_path_factory):
    """Embeddings of `blood` in three parts, and an index in two shards."""
    place = tmp_path_factory.mktemp("made")
    shutil.copy(blood_file, place / "blood.h5ad")
    scgpt_ray.embed(
        executor="serial", atlas=str(place / "blood.h5ad"), checkpoint=str(checkpoint), cells_per_partition=100,
        output=str(place / "run"), obs_columns=["cell_type"],
    )  # fmt: skip
    scgpt_ray.build_index(
        executor="serial", embeddings=str(place / "run"), output=str(place / "index"), factory="IVF2,SQ8", shards=2
    )
    return place


def flip(content):
    return content[: len(content) // 3] + bytes([content[len(content) // 3] ^ 1]) + content[len(content) // 3 + 1 :]


def torn(content):
    return content[: len(content) // 2]


UNLIKE = ("recall.json", "report.html", "mlflow.db")
"""They hold times."""


def state(folder):
    """Content and time of all other files."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in UNLIKE]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def contents(files):
    return {name: content for name, (content, _) in files.items()}


@pytest.fixture
def damaged(made, tmp_path):
    """A copy of a folder with a damaged file, and its state before."""

    def make(folder, name, damage):
        copy = shutil.copytree(made / folder, tmp_path / folder)
        before = state(copy)
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        if damage is not None:
            (copy / name).write_bytes(damage(content))
        return copy, before

    return make


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (PART, None),
        (PART, flip),
        pytest.param(PART, torn, marks=pytest.mark.slow),
        pytest.param("genes.parquet", None, marks=pytest.mark.slow),
        ("genes.parquet", flip),
        pytest.param(Manifest.file, torn, marks=pytest.mark.slow),
    ],
)
def test_embeddings_are_repaired(damaged, name, damage):
    run, before = damaged("run", name, damage)
    found = scgpt_ray.validate(embeddings=str(run))
    assert found[0].startswith(f"{name} ")
    assert found.remedy == f"mend them with: scgpt-ray validate --embeddings {run} --repair"
    assert scgpt_ray.validate(embeddings=str(run), repair=True, executor="serial") == []
    after = state(run)
    manifests = [json.loads(files.pop(Manifest.file)[0]) | {"actors": None} for files in (before, after)]
    assert manifests[0] == manifests[1]
    assert contents(after) == contents(before)
    rewritten = {key for key in after if after[key][1] != before[key][1]}
    assert rewritten - {"genes.parquet"} == {name} - {Manifest.file, "genes.parquet"}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("template.faiss", flip),
        pytest.param("template.json", None, marks=pytest.mark.slow),
        pytest.param("centre.npy", torn, marks=pytest.mark.slow),
        pytest.param("shard-00001.faiss", torn, marks=pytest.mark.slow),
        pytest.param("ids-00000.npy", flip, marks=pytest.mark.slow),
        ("vectors-00001.npy", flip),
        ("labels-00000.parquet", None),
        ("README.md", None),
        ("README.md", torn),
    ],
)
def test_an_index_is_repaired(damaged, name, damage):
    index, before = damaged("index", name, damage)
    assert scgpt_ray.validate(index=str(index)).remedy == (
        f"mend them with: scgpt-ray validate --index {index} --repair"
    )
    assert scgpt_ray.validate(index=str(index), repair=True, executor="serial") == []
    after = state(index)
    assert contents(after) == contents(before)
    measured = {IndexDescription.file, "README.md", "fitness.json", "markers.parquet"}
    rewritten = {key for key in after if after[key][1] != before[key][1]} - measured
    number = name.partition("-")[2][:5]
    templates = {"template.faiss", "template.json", "centre.npy"} if name != "README.md" else set()
    files = {key for key in after if number in key} if number else templates
    assert rewritten == files


def test_nothing_is_deleted_before_it_can_be_made_again(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    (run / PART).write_bytes(b"")
    before = state(run)
    atlas = made / "blood.h5ad"
    atlas.rename(made / "away.h5ad")
    try:
        with pytest.raises(AtlasError, match="no such file"):
            scgpt_ray.validate(embeddings=str(run), repair=True)
    finally:
        (made / "away.h5ad").rename(atlas)
    assert state(run) == before
    index = tmp_path / "index"
    shutil.copytree(made / "index", index)
    description = IndexDescription.read(Folder.at(index))
    description.replace(embeddings=str(tmp_path / "gone")).write(Folder.at(index))
    (index / "ids-00000.npy").write_bytes(b"")
    before = state(index)
    with pytest.raises(ReferenceSetError, match=r"gone has no manifest.json"):
        scgpt_ray.validate(index=str(index), repair=True)
    description.replace(appended=(str(made / "run"),)).write(Folder.at(index))
    with pytest.raises(ReferenceSetError, match="has appended cells"):
        scgpt_ray.validate(index=str(index), repair=True)
    assert {key: value[0] for key, value in state(index).items() if key != IndexDescription.file} == {
        key: value[0] for key, value in before.items() if key != IndexDescription.file
    }


def test_what_cannot_be_repaired_is_left(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    (run / Plan.file).write_bytes(b"{}")
    before = state(run)
    found = scgpt_ray.validate(embeddings=str(run), repair=True)
    assert found[0].startswith("plan.json cannot be used: ")
    assert found.remedy == "run scgpt-ray embed again with a new --output"
    assert found.text().splitlines() == [*found, found.remedy]
    assert state(run) == before


def test_a_plan_without_a_request(make_embeddings, tmp_path):
    run = make_embeddings(tmp_path / "run")
    run.remove(PART)
    before = state(run.path)
    with pytest.raises(ReferenceSetError, match="holds no whole request"):
        scgpt_ray.validate(embeddings=run.uri, repair=True)
    assert state(run.path) == before
    assert json.loads(json.dumps(scgpt_ray.validate(embeddings=run.uri).to_dict()))["ok"] is False
