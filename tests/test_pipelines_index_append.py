"""Builds that are killed and taken up again, and cells that are added later."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

import scgpt_ray
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.execution.serial import SerialExecutor
from scgpt_ray.index.recall import recall_at
from scgpt_ray.index.searcher import SearchParams
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.manifest import require_manifest
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.pipelines.reference import Reference
from scgpt_ray.schema import JOINID
from tests.forked import Forked

FACTORY = "PCAR8,IVF4,PQ4x4fsr"


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-0*")} | {
        "template.faiss": (folder / "template.faiss").stat().st_mtime_ns
    }


def contents(folder):
    files = [*folder.glob("*-0*"), folder / "template.faiss", folder / "centre.npy"]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_killed_build_keeps_its_template_and_shards(make_embeddings, tmp_path):
    """kill -9 of the whole process group once a shard is committed; the same command then finishes the rest."""
    run = make_embeddings(tmp_path / "run", n_cells=2000, cells_per_part=20, dimension=16)
    settings = {"embeddings": run.uri, "factory": FACTORY, "shards": 30}
    scgpt_ray.build_index(executor="serial", output=str(tmp_path / "whole"), **settings)
    output = tmp_path / "killed"
    command = ["index", "--embeddings", run.uri, "--output", str(output)]
    command += ["--factory", FACTORY, "--shards", "30", "--executor", "serial"]
    with Forked(command, tmp_path) as driver:
        driver.until(lambda: list(output.glob("shard-*.json")), 0.001)
        os.killpg(driver.pid, signal.SIGKILL)
    assert not (output / "index.json").exists()
    kept = {path.name for path in output.glob("shard-*.json")}
    assert 0 < len(kept) < 30
    before = times(output)
    scgpt_ray.build_index(executor="serial", output=str(output), **settings)
    after = times(output)
    names = {name.replace("shard-", "").removesuffix(".json") for name in kept}
    for name in before:
        if name == "template.faiss" or any(number in name for number in names):
            assert after[name] == before[name], f"{name} was built again"
    assert contents(output) == contents(tmp_path / "whole")


def test_a_shard_or_template_of_another_request_is_not_trusted(make_embeddings, tmp_path):
    run = make_embeddings(tmp_path / "run", n_cells=400, cells_per_part=50, dimension=16)
    output = tmp_path / "index"
    options = {"embeddings": run.uri, "output": str(output), "factory": FACTORY, "shards": 2}
    scgpt_ray.build_index(executor="serial", **options)
    (output / "index.json").unlink()
    before = times(output)
    scgpt_ray.build_index(executor="serial", **options)
    assert times(output) == before
    (output / "index.json").unlink()
    scgpt_ray.build_index(executor="serial", **options | {"seed": 1})
    assert not {name for name, at in times(output).items() if at == before[name]}
    (output / "index.json").unlink()
    before = times(output)
    scgpt_ray.build_index(executor="serial", **options | {"seed": 1, "label_columns": ["kind"]})
    assert {name for name, at in times(output).items() if at == before[name]} == {"template.faiss"}
    assert scgpt_ray.validate(index=str(output)) == []


def cut_to(run, n_parts):
    """Make a run look as it did when it had fewer parts."""
    manifest = require_manifest(run)
    parts = dict(list(manifest.parts.items())[:n_parts])
    digests = manifest.digests[:n_parts]
    manifest.replace(parts=parts, digests=digests, n_cells=sum(parts.values())).write(run)
    return manifest


@pytest.mark.parametrize("factory", ["Flat", FACTORY])
def test_appended_shards_agree_with_exact_search(make_embeddings, tmp_path, factory):
    run = make_embeddings(tmp_path / "run", n_cells=500, cells_per_part=50, empty=(3, 400), dimension=16)
    whole = cut_to(run, 6)
    options = {"embeddings": run.uri, "output": str(tmp_path / "index"), "factory": factory, "shards": 2}
    first = scgpt_ray.build_index(executor="serial", **options)
    assert (first.n_cells, len(first.shards)) == (299, 2)
    before = times(tmp_path / "index")
    whole.write(run)
    grown = scgpt_ray.build_index(
        executor="serial", embeddings=run.uri, output=str(tmp_path / "index"), append=True, shards=1
    )
    assert (grown.n_cells, len(grown.shards), grown.appended) == (498, 3, ())
    assert grown.shards[:2] == first.shards
    after = times(tmp_path / "index")
    assert {name: after[name] for name in before} == before
    assert scgpt_ray.validate(index=str(tmp_path / "index")) == []
    again = scgpt_ray.build_index(executor="serial", embeddings=run.uri, output=str(tmp_path / "index"), append=True)
    assert again == grown
    ids, vectors = vectors_of(read_embeddings(run))
    queries = vectors[::10]
    truth = ids[np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]]
    found, _ = (
        Reference.at(str(tmp_path / "index")).on(SerialExecutor()).neighbors(queries, 10, params=SearchParams(4, 640))
    )
    assert recall_at(found, truth) > 0.99


def test_cells_of_another_folder_are_added_once(make_embeddings, tmp_path):
    small = make_embeddings(tmp_path / "small", n_cells=100, cells_per_part=30)
    large = make_embeddings(tmp_path / "large", n_cells=160, cells_per_part=40)
    output = str(tmp_path / "index")
    scgpt_ray.build_index(executor="serial", embeddings=small.uri, output=output, license="mit")
    grown = scgpt_ray.build_index(executor="serial", embeddings=large.uri, output=output, append=True)
    assert (grown.n_cells, grown.appended, grown.license) == (159, (large.uri,), "mit")
    assert "index of 159 cells" in (tmp_path / "index" / "README.md").read_text()
    options = {"embeddings": large.uri, "output": output, "append": True, "license": "cc0-1.0"}
    again = scgpt_ray.build_index(executor="serial", **options)
    assert again == grown.replace(license="cc0-1.0")
    assert "license: cc0-1.0" in (tmp_path / "index" / "README.md").read_text()
    assert scgpt_ray.validate(index=output) == []
    labels = Reference.at(output).on(SerialExecutor()).labels(np.array([[15, 165]]), ["age"])
    assert sorted(labels[JOINID].to_pylist()) == [15, 165]


def test_what_cannot_be_added(make_embeddings, tmp_path):
    run = make_embeddings(tmp_path / "run")
    other = make_embeddings(tmp_path / "other", weights="v")
    output = str(tmp_path / "index")
    with pytest.raises(ReferenceSetError, match=r"has no index.json"):
        scgpt_ray.build_index(executor="serial", embeddings=run.uri, output=output, append=True)
    scgpt_ray.build_index(executor="serial", embeddings=run.uri, output=output)
    with pytest.raises(ReferenceSetError, match=r"differ in the model \(weights: .*checkpoint"):
        scgpt_ray.build_index(executor="serial", embeddings=other.uri, output=output, append=True)
    manifest = require_manifest(run)
    cells = {"uri": "another atlas", "obs_columns": ["kind"]}
    fingerprint = replace(manifest.fingerprint, cells=cells)
    manifest.replace(fingerprint=fingerprint).write(other)
    with pytest.raises(ReferenceSetError, match="is of the atlas another atlas"):
        scgpt_ray.build_index(executor="serial", embeddings=other.uri, output=output, append=True)
    manifest.replace(obs_columns=["kind"]).write(other)
    with pytest.raises(ReferenceSetError, match="carries no column age"):
        scgpt_ray.build_index(executor="serial", embeddings=other.uri, output=output, append=True)
